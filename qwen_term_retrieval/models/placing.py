"""A model by name, put where it computes: names to a device that is here and a type that models take."""

from __future__ import annotations

from pathlib import Path

import torch

from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.weights.shipped import model_place

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def placed_model(
    model: str | Path | TermRetrievalModel | None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> TermRetrievalModel:
    """A model for searches, by folder, Hub id or name, or one that is loaded; see `TermRetriever.from_pretrained`.

    Raises:
        ValueError: a revision of a folder, or of a loaded model; a device that there is not here, or no dtype.
    """
    if not isinstance(model, TermRetrievalModel):
        model = model_place(model)
    if revision is not None and (isinstance(model, TermRetrievalModel) or Path(model).is_dir()):
        given = "a loaded model" if isinstance(model, TermRetrievalModel) else f"the folder {model}"
        raise ValueError(
            f"revision={revision!r} is of a model on the Hub, but {given} was given. Each checkpoint of a run is "
            "a folder of its own: `qtr models FOLDER` lists them"
        )
    where, precision = checked_device(device), checked_dtype(dtype)
    if isinstance(model, TermRetrievalModel):
        loaded = model
    else:
        loaded = TermRetrievalModel.from_pretrained(model, revision=revision)
        where = where or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision is not None:
        loaded.to(precision)  # type: ignore[arg-type]
    if not isinstance(model, TermRetrievalModel):
        loaded.fold_lora()
    if where is not None:
        loaded.to(where)  # type: ignore[arg-type]
    return loaded


def checked_device(device: str | torch.device | None) -> torch.device | None:
    """The device of a name.

    Raises:
        ValueError: no such device on this machine, or in this build of PyTorch.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={str(device)!r} is no device; give cpu, cuda, cuda:1 or mps") from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            built = "sees no GPU" if torch.version.cuda or torch.version.hip else "is built for CPUs only"
            raise ValueError(f"device={str(device)!r}, but PyTorch {torch.__version__} {built} here; give cpu")
        if (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={str(device)!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={str(device)!r}, but PyTorch {torch.__version__} has no Metal here; give cpu")
    return found


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type of a name.

    Raises:
        ValueError: a type that models do not compute in.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if found not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {str(dtype)!r}")
    return found
