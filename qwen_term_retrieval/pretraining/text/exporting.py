"""The encoder of a pre-trained T5 as a model of its own, half the size: what a text tower needs."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer

from qwen_term_retrieval.storage.staging import check_free, publish, staging_of


def export_encoder(model: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write encoder and tokenizer of a run's folder, or of a Hub id, and return the folder.

    A text tower takes the whole model as well, and reads its encoder alone: this is for sharing it.

    Args:
        model: an encoder-decoder of the T5 family.
        out: the folder to make; None: `encoder` within `model`.

    Raises:
        FileExistsError: `out` is there.
        ValueError: the model has no encoder to export.

    Example:
        >>> export_encoder("outputs/text")                                     # doctest: +SKIP
        >>> AutoModelForTextEncoding.from_pretrained("outputs/text/encoder")   # doctest: +SKIP
    """
    out = Path(model, "encoder").absolute() if out is None else Path(out).absolute()
    config = AutoConfig.from_pretrained(model)
    if not config.is_encoder_decoder:
        raise ValueError(f"{model} is a {config.model_type}, a decoder: it has no encoder to export")
    check_free(out, "a model", "config.json", overwrite=overwrite)
    encoder = AutoModelForTextEncoding.from_pretrained(model)
    with staging_of(out) as staging:
        encoder.save_pretrained(staging / "encoder")
        AutoTokenizer.from_pretrained(model).save_pretrained(staging / "encoder")
        publish(staging / "encoder", out)
    return out
