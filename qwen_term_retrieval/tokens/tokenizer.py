"""Any fast tokenizer as packing needs it: untruncated, known by the hash of its definition, its end token resolved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from qwen_term_retrieval.tokens.token_pack import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"


@dataclass(frozen=True)
class PackingTokenizer:
    """A tokenizer and the ids packing lays between and after its texts; make one with `of`.

    `definition` is the text of a `tokenizer.json`; `eos_ids` and `separator_ids` hold one id, or none.
    """

    name: str
    definition: str
    vocabulary_size: int
    dtype: str
    eos: str | None
    eos_ids: tuple[int, ...]
    separator: str | None
    separator_ids: tuple[int, ...]
    pad_id: int

    @classmethod
    def of(
        cls,
        tokenizer: str | Path | tokenizers.Tokenizer | PreTrainedTokenizerBase,
        *,
        dtype: str = AUTO,
        eos: str | None = AUTO,
        separator: str | None = None,
    ) -> PackingTokenizer:
        """Open a tokenizer: a Hub id, a folder, a `tokenizer.json`, or an object of `transformers` or `tokenizers`.

        Raises:
            ValueError: not fast, without a token named, or with ids that do not fit the dtype.
            OSError: nothing of that name.
        """
        name, backend, own_eos, own_pad_id = _open(tokenizer)
        backend = untruncated(backend)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        label = f"the tokenizer {name}" if name else "the tokenizer"
        if eos == AUTO:
            if own_eos is None:
                raise ValueError(f"{label} names no eos token; give eos='…', or eos=None to end documents with nothing")
            eos = own_eos
        for token in (eos, separator):
            if token is not None and token not in vocabulary:
                raise ValueError(f"{label} has no token {token!r}; name one of its vocabulary, or None for no token")
        eos_ids = () if eos is None else (vocabulary[eos],)
        vocabulary_size = max(vocabulary.values()) + 1
        return cls(
            name=name,
            definition=backend.to_str(),
            vocabulary_size=vocabulary_size,
            dtype=_checked_dtype(dtype, vocabulary_size, label),
            eos=eos,
            eos_ids=eos_ids,
            separator=separator,
            separator_ids=() if separator is None else (vocabulary[separator],),
            pad_id=(*eos_ids, 0)[0] if own_pad_id is None else own_pad_id,
        )

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.definition.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """What `tokens.json` says of the tokenizer."""
        names = ("name", "sha256", "vocabulary_size", "eos", "separator", "pad_id")
        return {name: getattr(self, name) for name in names}


def untruncated(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that neither cuts nor pads; many published tokenizers cut at 128 or 512 tokens unless told otherwise."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _open(
    tokenizer: str | Path | tokenizers.Tokenizer | PreTrainedTokenizerBase,
) -> tuple[str, tokenizers.Tokenizer, str | None, int | None]:
    """Name, backend, eos token and pad id; None where nothing is said of those."""
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return "", tokenizer, None, None
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        if path.is_file():
            return path.parent.name, tokenizers.Tokenizer.from_file(str(path)), None, None
        if path.suffix == ".json":
            raise ValueError(f"no tokenizer {str(tokenizer)!r}: there is no such file")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no tokenizer {str(tokenizer)!r}: give a folder, a tokenizer.json or a Hub id ({error})"
            ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer; convert it, or load another")
    # A folder by its own name: its whole path would tell of the machine, and change the bytes from place to place.
    name = Path(tokenizer.name_or_path).name if Path(tokenizer.name_or_path).is_dir() else tokenizer.name_or_path
    return name, tokenizer.backend_tokenizer, tokenizer.eos_token or tokenizer.sep_token, tokenizer.pad_token_id


def _checked_dtype(dtype: str, vocabulary_size: int, label: str) -> str:
    fitting = [name for name in DTYPES if vocabulary_size - 1 <= np.iinfo(name).max]
    if dtype == AUTO:
        return fitting[0]
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; it must be one of {AUTO}, {', '.join(DTYPES)}")
    if dtype not in fitting:
        raise ValueError(f"{label} has ids up to {vocabulary_size - 1}, which do not fit {dtype}; use {fitting[0]}")
    return dtype
