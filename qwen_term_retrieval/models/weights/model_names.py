"""Names of models: a folder, or a Hub id; and a mistyped one said at once, before the Hub is asked again and again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from qwen_term_retrieval.did_you_mean import did_you_mean
from qwen_term_retrieval.models.weights.shipped import shipped_models

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONFIG = "config.json"
# Of the one question whether the Hub has a model.
_SECONDS = 5.0


def check_model_name(name: Any, revision: str | None = None) -> None:
    """Refuse a name that is neither a folder here nor a model on the Hub.

    The Hub is asked once, and not at all where a folder of almost this name is here or the name can be no Hub id.

    Raises:
        FileNotFoundError: saying what it may have meant.
    """
    text = str(name)
    if not text or Path(text).expanduser().is_dir():
        return
    near = did_you_mean(text, [*_models_beside(Path(text)), *(model.name for model in shipped_models())])
    is_id = _HUB_ID.fullmatch(text) is not None and not isinstance(name, Path)
    if is_id and isinstance(try_to_load_from_cache(text, _CONFIG, revision=revision), str):
        return
    if near or not is_id:
        hub = "" if is_id else ", and such a name is no model on the Hub"
        raise FileNotFoundError(f"no model {text!r}: it is no folder here{hub}{near}")
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"no model {text!r}: it is no folder here, and the Hub did not give it: HF_HUB_OFFLINE is set, and the "
            f"cache does not have it{_ending(text, revision)}"
        )
    try:
        HfApi().model_info(text, revision=revision, timeout=_SECONDS)
    except GatedRepoError:
        return  # transformers says how to ask for it
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"no model {text!r}{at}: it is no folder here, and the Hub did not give it: {_first_line(error)}"
            f"{_ending(text, revision)}"
        ) from error
    except Exception as error:  # whatever kept the Hub from answering
        raise FileNotFoundError(
            f"no model {text!r}: it is no folder here, and the Hub cannot be reached: {_first_line(error)}"
        ) from error


def _models_beside(path: Path) -> list[str]:
    """Folders that hold a model, named as `path` is, where it would be."""
    try:
        beside = list(path.expanduser().parent.iterdir())
    except OSError:
        return []
    models = [each for each in beside if each.is_dir() and ((each / _CONFIG).is_file() or _has_checkpoint(each))]
    return [os.path.join(os.path.dirname(str(path)), each.name) for each in models]  # noqa: PTH118, PTH120


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob(f"checkpoint-*/{_CONFIG}"))


def _ending(name: str, revision: str | None) -> str:
    return f". `qtr models {name}` lists the revisions." if revision else ""


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
