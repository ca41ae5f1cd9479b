"""Pairs of prompt and response out of a token pack, by number, cut when they are read.

A pack holds whole texts, so one pack serves every limit: `max_seq_len=128` and 192 read the same files. What is cut
keeps its end token, or a model would never learn to stop. Opening costs the headers, whatever the number of pairs.

Shapes: B pairs, S tokens of a prompt, T tokens of a response.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tokenizers
import xxhash

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.tokens.packing import SHARD_BYTES, TokenPackSummary, pack_tokens
from qwen_term_retrieval.tokens.stream import TokenStream, let_go_of
from qwen_term_retrieval.tokens.token_pack import HEADER_BYTES, TOKENIZER, TokenPack
from qwen_term_retrieval.tokens.tokenizer import PackingTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt", "response")
# Pairs read before the pages of large files are let go: some 30 MB of pages, and a millisecond or two each time.
_PAIRS_HELD = 32
_LENGTHS_HELD = 2048


class PairBatch(NamedTuple):
    """Ids of pairs, padded on the right, int32 (B, S) and (B, T), and how many of each are theirs, int64 (B,)."""

    prompt_BS: np.ndarray
    prompt_lengths_B: np.ndarray
    response_BT: np.ndarray
    response_lengths_B: np.ndarray


def pack_pairs(
    source: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: str | Path | tokenizers.Tokenizer | PreTrainedTokenizerBase,
    *,
    num_workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    quiet: bool = False,
) -> TokenPackSummary:
    """Tokenize the columns `prompt` and `response` of files into a pack for `MmapPairs`; see `pack_tokens`.

    The tokenizer's end token stands behind each prompt and each response, and nowhere else: special tokens that a text
    spells are read as its letters.
    """
    end = PackingTokenizer.of(tokenizer).eos
    return pack_tokens(
        source, out, tokenizer, columns=COLUMNS, separator=end, spelled_is_text=True, num_workers=num_workers,
        shard_bytes=shard_bytes, overwrite=overwrite, quiet=quiet,
    )  # fmt: skip


class MmapPairs:
    """The pairs of a folder that `pack_pairs` made.

    Args:
        path: the folder.
        max_seq_len: tokens of a prompt and of a response at most, the end token among them.

    Raises:
        PackError: a file is missing, damaged or foreign; or the pack holds no pairs with end tokens.
        ValueError: a limit that leaves nothing but the end token.

    Example:
        >>> pairs = MmapPairs("data/text/tokens/train", max_seq_len=192)        # doctest: +SKIP
        >>> pairs.batch([3, 1, 2]).response_BT.shape                            # doctest: +SKIP
        (3, 57)
    """

    def __init__(self, path: str | Path, max_seq_len: int):
        if max_seq_len < 2:
            raise ValueError(f"max_seq_len={max_seq_len}; a text needs a token beside its end token")
        self._reopen = partial(type(self), path, max_seq_len)
        self.pack = TokenPack.open(path)
        self.max_seq_len = max_seq_len
        content = self.pack.content
        made_by = content["tokenizer"]
        if tuple(content["columns"]) != COLUMNS or made_by["separator"] is None or made_by["eos"] is None:
            raise PackError(
                f"{path}: a pack of {content['columns']}, separator {made_by['separator']}, eos {made_by['eos']}, is "
                "none of pairs with end tokens; make one with `pack_pairs`"
            )
        self.pad_id: int = made_by["pad_id"]
        self._stream = TokenStream(
            self.pack.shards, np.dtype(content["dtype"]).newbyteorder("<"), content["num_tokens"],
            content["shard_tokens"], HEADER_BYTES,
        )  # fmt: skip
        self._starts = self.pack.documents()
        self._pairs_held = 0

    def __len__(self) -> int:
        """Number of pairs."""
        return self.pack.content["num_documents"]

    def lengths(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each prompt and of each response, cut: int64 (B,) each."""
        index_B = np.asarray(indices, np.int64)
        length_BC = np.empty((len(index_B), 2), np.int64)
        # In the order of the file, so that a stretch of it is needed at a time.
        order_B = np.argsort(index_B)
        for start in range(0, len(index_B), _LENGTHS_HELD):
            some = order_B[start : start + _LENGTHS_HELD]
            length_BC[some] = self._locate(index_B[some])[1]
            if len(index_B) > _LENGTHS_HELD:
                let_go_of(self._starts)
        return length_BC[:, 0], length_BC[:, 1]

    def batch(self, indices: Sequence[int] | np.ndarray) -> PairBatch:
        """The pairs at these indices, side by side.

        Raises:
            IndexError: there is no such pair.
        """
        index_B = np.asarray(indices, np.int64)
        if index_B.ndim != 1 or ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.pack.folder} has {len(self)} pairs, but was asked for {indices!r:.80}")
        start_BC, length_BC = self._locate(index_B)
        end_BC = self._starts[2 * index_B[:, None] + (1, 2)]
        sides = [self._side(start_BC[:, side], length_BC[:, side], end_BC[:, side]) for side in range(2)]
        self._pairs_held += len(index_B)
        if self._pairs_held >= _PAIRS_HELD:
            self._pairs_held = 0
            self._stream.let_go()
            let_go_of(self._starts)
        return PairBatch(sides[0], length_BC[:, 0], sides[1], length_BC[:, 1])

    def _locate(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each side starts in the stream, and how many tokens of it are read: (B, 2) each."""
        bound_B3 = self._starts[2 * index_B[:, None] + (0, 1, 2)]
        return bound_B3[:, :2], np.minimum(np.diff(bound_B3), self.max_seq_len)

    def _side(self, start_B: np.ndarray, length_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
        width = int(length_B.max(initial=0))
        ids_BL = self._stream.rows(start_B, width).astype(np.int32)
        ids_BL[np.arange(width) >= length_B[:, None]] = self.pad_id
        cut = np.flatnonzero(end_B - start_B > length_B)
        if len(cut):
            ids_BL[cut, length_B[cut] - 1] = self._stream.rows(end_B[cut] - 1, 1)[:, 0]
        return ids_BL

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer that made the ids, as it lies beside them."""
        return tokenizers.Tokenizer.from_file(str(self.pack.folder / TOKENIZER))

    def identity(self) -> str:
        """What tells these pairs from others: how many they are, and a digest of the pack's checksums."""
        content: dict[str, Any] = {name: self.pack.content[name] for name in ("shards", "files")}
        digest = xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())
        return f"{len(self)} with digest {digest}"

    def __reduce__(self) -> tuple[partial[MmapPairs], tuple[()]]:
        return self._reopen, ()
