"""Trackers of `report_to`, checked before anything costly starts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from transformers.integrations import get_reporting_integration_callbacks

# Those whose package has the tracker's name; of others transformers itself complains, once the clips are prepared.
_PACKAGES = ("clearml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def check_trackers(report_to: Iterable[str]) -> None:
    """Refuse trackers that nobody knows, or whose package is missing.

    Raises:
        ValueError: naming the tracker and what to install.
    """
    for name in report_to:
        get_reporting_integration_callbacks([name])
        if name in _PACKAGES and find_spec(name) is None:
            raise ValueError(
                f"report_to={name!r}: the package {name!r} is not installed; `pip install {name}`, or --report_to none"
            )
