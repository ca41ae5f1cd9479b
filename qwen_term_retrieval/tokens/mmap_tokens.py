"""Training windows out of packed tokens: `(x, y)`, y one token ahead of x, from files of any size.

Nothing is read before it is asked for: opening costs the headers, and a window is one copy out of the page cache. The
dataset holds paths, so it goes to DataLoader workers, forked or spawned, for nothing. Two ways to cut the stream:

- packed (the default): windows follow one another every `stride` tokens, from document to document without regard, as
  in GPT-2; no padding, and each token is trained on. Tokens after the last whole window are left out.
- `aligned="document"`: a window holds tokens of one document, the first one starts with it, and the last one is padded.
  Where x is padding y is -100, which losses pass over; a document's last token is predicted and predicts nothing.

The order is the sampler's (`MmapTokens.sampler`), so the dataset has no epoch that a worker could miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.tokens.document_windows import DocumentWindows
from qwen_term_retrieval.tokens.stream import TokenStream
from qwen_term_retrieval.tokens.token_pack import DTYPES, HEADER_BYTES, TOKENIZER, TokenPack, TokenShardHeader
from qwen_term_retrieval.tokens.window_order import WindowSampler

IGNORED_LABEL = -100

Window = tuple[Any, Any]


class MmapTokens:
    """Windows of a folder that `pack_tokens` made, of one of its shards, or of a bare file of ids.

    `tokens[i]` is `(x, y)`, each `(sequence_length,)`; `tokens[[3, 1, 2]]` a batch, each `(3, sequence_length)`. A
    DataLoader may ask for windows (`batch_size=64, sampler=sampler`) or, faster, for batches:

        tokens = MmapTokens("tokens/train", sequence_length=1024)
        sampler = tokens.sampler(seed=0)
        batches = BatchSampler(sampler, batch_size=64, drop_last=True)
        for x, y in DataLoader(tokens, batch_size=None, sampler=batches): ...

    To hand a batch from process to process takes longer than to read it, so workers help only where files are cold.

    Args:
        path: the folder; or a file, read as one stream without documents.
        sequence_length: tokens in x, and in y.
        aligned: False, or "document": see the head of this file.
        stride: tokens from one window to the next, not with `aligned`; None: `sequence_length`. With 1, every offset is
            a window.
        dtype: "uint16" or "uint32" of a bare file of little-endian ids, without a header, as nanoGPT makes them.
        pad_id: id in x beyond a document's end; None: the tokenizer's pad token, or else its eos.
        output: "torch" for int64 tensors, "numpy" for int32 arrays.

    Raises:
        PackError: a file is missing, cut short, of another pack, or its header damaged. `verify` reads every byte.
        ValueError: settings that do not fit together, or not one window in the tokens.
    """

    def __init__(
        self,
        path: str | Path,
        sequence_length: int,
        *,
        aligned: Literal[False, "document"] = False,
        stride: int | None = None,
        dtype: str | None = None,
        pad_id: int | None = None,
        output: Literal["torch", "numpy"] = "torch",
    ):
        if sequence_length < 1 or (stride is not None and stride < 1):
            raise ValueError(f"sequence_length={sequence_length} and stride={stride} must be positive")
        if aligned not in (False, "document"):
            raise ValueError(f"aligned={aligned!r}; it must be False or 'document'")
        if aligned and stride is not None:
            raise ValueError("stride has no meaning with aligned='document'; leave it out")
        if output not in ("torch", "numpy"):
            raise ValueError(f"output={output!r}; it must be 'torch' or 'numpy'")
        self.path = Path(path)
        self._reopen = partial(
            type(self), path, sequence_length, aligned=aligned, stride=stride, dtype=dtype, pad_id=pad_id, output=output
        )
        self.sequence_length = sequence_length
        self.stride = sequence_length if stride is None else stride
        self.output = output
        self.pack = TokenPack.open(path) if self.path.is_dir() else None
        self._stream = _stream_of_pack(self.pack) if self.pack else _stream_of_file(self.path, dtype)
        if pad_id is None:
            pad_id = self.pack.content["tokenizer"]["pad_id"] if self.pack else 0
        self.pad_id: int = pad_id
        self._text_starts = self.pack.documents() if self.pack else np.zeros(0, np.int64)
        self._documents = DocumentWindows(self._document_starts(), sequence_length) if aligned else None
        if self._documents is not None:
            self._num_windows = len(self._documents)
        else:
            self._num_windows = max(0, (self.num_tokens - 1 - sequence_length) // self.stride + 1)
        if not self._num_windows:
            raise ValueError(
                f"{self.path} holds {self.num_tokens} tokens, not enough for one window of {sequence_length} and the "
                "token after it; pack more text, or take a shorter sequence_length"
            )

    @property
    def num_tokens(self) -> int:
        return self._stream.num_tokens

    @property
    def num_documents(self) -> int:
        return len(self._document_starts()) - 1

    def __len__(self) -> int:
        """Number of windows."""
        return self._num_windows

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> Window:
        """The window at an index, or the batch of several: `(x, y)`; negative indices count from the end.

        Raises:
            IndexError: there is no such window.
        """
        if isinstance(index, int):
            return self._item(index)
        if isinstance(index, slice):
            return self.batch(range(*index.indices(len(self))))
        index_B = np.asarray(index)
        return self.batch(index_B) if index_B.ndim or index_B.dtype.kind not in "iu" else self._item(int(index_B))

    def _item(self, index: int) -> Window:
        if self._documents is None and 0 <= index < len(self):
            return self._window(index * self.stride)
        x_1S, y_1S = self.batch([index])
        return x_1S[0], y_1S[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Window]:
        """What a DataLoader with `batch_size` asks for: a list of windows, read as one batch."""
        x_BS, y_BS = self.batch(indices)
        return list(zip(x_BS, y_BS, strict=True))

    def batch(self, indices: Sequence[int] | np.ndarray, out: Window | None = None) -> Window:
        """Windows at these indices, `(x, y)` of (B, sequence_length) each, written into `out` where it is given.

        Fresh memory costs more than the reading: a loop that gives back the pair of the last step runs several times as
        fast. `out` may be pinned tensors.
        """
        index_B = np.asarray(indices)
        if index_B.dtype.kind not in "iu" and index_B.size:
            raise TypeError(f"windows are counted by whole numbers, not by {indices!r:.80}")
        index_B = index_B.astype(np.int64)
        index_B = np.where(index_B < 0, index_B + len(self), index_B)
        if index_B.ndim != 1 or ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.path} has {len(self)} windows, but was asked for {indices!r:.80}")
        if self._documents is None:
            return self._windows(index_B * self.stride, out)
        start_B, num_next_B = self._documents.locate(index_B)
        x_BS, y_BS = self._windows(start_B, out)
        padding_BS = np.arange(self.sequence_length) >= num_next_B[:, None]
        np.asarray(x_BS)[padding_BS] = self.pad_id
        np.asarray(y_BS)[padding_BS] = IGNORED_LABEL
        return x_BS, y_BS

    def window(self, offset: int) -> Window:
        """The window at any offset of the stream, whatever the stride and the documents.

        Raises:
            IndexError: no whole window and next token start there.
        """
        last = self.num_tokens - 1 - self.sequence_length
        if not 0 <= offset <= last:
            raise IndexError(f"{self.path}: windows start at offsets 0 to {last}, not at {offset}")
        return self._window(offset)

    def _window(self, start: int) -> Window:
        ids_T = self._stream.read(start, start + self.sequence_length + 1)
        if self.output == "numpy":
            return ids_T[:-1].astype(np.int32), ids_T[1:].astype(np.int32)
        import torch

        return torch.from_numpy(ids_T[:-1].astype(np.int64)), torch.from_numpy(ids_T[1:].astype(np.int64))

    def _windows(self, start_B: np.ndarray, out: Window | None) -> Window:
        ids_BT = self._stream.rows(start_B, self.sequence_length + 1)
        # Two arrays, not two views of one: setting labels to -100 must not change the inputs.
        x_BS, y_BS = self._empty(len(start_B)) if out is None else self._checked(out, len(start_B))
        np.asarray(x_BS)[:] = ids_BT[:, :-1]
        np.asarray(y_BS)[:] = ids_BT[:, 1:]
        return x_BS, y_BS

    def _empty(self, batch_size: int) -> Window:
        shape = (batch_size, self.sequence_length)
        if self.output == "numpy":
            return np.empty(shape, np.int32), np.empty(shape, np.int32)
        import torch

        return torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.int64)

    def _checked(self, out: Window, batch_size: int) -> Window:
        shape = (batch_size, self.sequence_length)
        if any(tuple(array.shape) != shape for array in out):
            raise ValueError(f"out has the shapes {[tuple(array.shape) for array in out]}; it must be two of {shape}")
        return out

    def sampler(self, *, seed: int = 0, shuffle: bool = True, rank: int = 0, num_ranks: int = 1) -> WindowSampler:
        """A sampler over all windows; `set_epoch(epoch, position)` starts an epoch, or goes on within it.

        Under `accelerate`, which shares out batches itself, leave the ranks as they are.
        """
        return WindowSampler(len(self), seed=seed, shuffle=shuffle, rank=rank, num_ranks=num_ranks)

    def document(self, number: int) -> dict[str, np.ndarray]:
        """The ids of a document by column, separator and eos with the column they follow.

        >>> tokens.document(0)  # doctest: +SKIP
        {'prompt': array([...], dtype=uint16), 'response': array([...], dtype=uint16)}
        """
        if not 0 <= number < self.num_documents:
            raise IndexError(f"{self.path} has {self.num_documents} documents, but was asked for number {number}")
        columns = self._pack().content["columns"]
        bounds = self._text_starts[number * len(columns) : (number + 1) * len(columns) + 1].tolist()
        return {
            column: self._stream.read(start, stop)
            for column, start, stop in zip(columns, bounds[:-1], bounds[1:], strict=True)
        }

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer that made the ids, as it lies beside them."""
        return tokenizers.Tokenizer.from_file(str(self._pack().folder / TOKENIZER))

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise unless `tokenizer` (anything that `pack_tokens` takes) is the one that made the ids.

        Raises:
            ValueError: it is another one.
        """
        from qwen_term_retrieval.tokens.tokenizer import PackingTokenizer

        made_by = self._pack().content["tokenizer"]
        given = PackingTokenizer.of(tokenizer, eos=None)
        if given.sha256 != made_by["sha256"]:
            raise ValueError(
                f"{self.path} was packed with the tokenizer {made_by['name']} (sha256 {made_by['sha256'][:8]}…), not "
                f"with {given.name} ({given.sha256[:8]}…); load that one, or pack the text again"
            )

    def verify(self, *, quiet: bool = True) -> list[str]:
        """Read every byte and compare with the checksums; one line per damage found. Empty: not a bit differs."""
        return self._pack().verify(quiet=quiet)

    def _pack(self) -> TokenPack:
        if self.pack is None:
            raise ValueError(f"{self.path} is one file of ids, without documents and checksums; give the pack's folder")
        return self.pack

    def _document_starts(self) -> np.ndarray:
        columns = self._pack().content["columns"]
        return self._text_starts[:: len(columns)]

    def __reduce__(self) -> tuple[partial[MmapTokens], tuple[()]]:
        return self._reopen, ()


def _stream_of_pack(pack: TokenPack) -> TokenStream:
    content = pack.content
    return TokenStream(
        pack.shards, _little_endian(content["dtype"]), content["num_tokens"], content["shard_tokens"], HEADER_BYTES
    )


def _stream_of_file(path: Path, dtype: str | None) -> TokenStream:
    if dtype is None:
        header = TokenShardHeader.read(path)
        return TokenStream(
            [path], _little_endian(header.dtype), header.num_tokens, max(header.num_tokens, 1), HEADER_BYTES
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; it must be one of {', '.join(DTYPES)}")
    size = path.stat().st_size
    num_tokens, rest = divmod(size, np.dtype(dtype).itemsize)
    if rest:
        raise PackError(f"{path}: {size} bytes are no whole number of {dtype} ids. Was a copy cut short?")
    return TokenStream([path], _little_endian(dtype), num_tokens, max(num_tokens, 1), 0)


def _little_endian(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
