"""Trackers of `report_to`, checked before anything costly starts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

# Those whose package has the tracker's name; of others transformers itself complains, once the clips are prepared.
_PACKAGES = ("clearml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def check_trackers(report_to: Iterable[str]) -> None:
    """Refuse trackers that nobody knows, or whose package is missing.

    Raises:
        ValueError: naming the tracker and what to install.
    """
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            there_are = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to={name!r} is no tracker; there are {there_are}")
        if name in _PACKAGES and find_spec(name) is None:
            raise ValueError(
                f"report_to={name!r}: the package {name!r} is not installed; `pip install {name}`, or --report_to none"
            )
