"""Clips by row number, as fast as memory can be copied: no rows are decoded, no samples are converted.

`datasets` decodes a shuffled dataset row by row, at a hundred microseconds each. `ClipReader` reads the column of
references once, 13 bytes a row, and from then on a batch of clips is a batch of slices of memory maps:

    reader = ClipReader(rows.shuffle(seed=1))
    for indices in length_buckets(reader.num_samples, 64):
        pcm_BS, num_samples_B = reader.gather(indices)

Audio in its own files, and packed audio that is verified, come by the same calls at the speed of decoding and of CRCs.
It pickles as its references, so DataLoader workers, forked or spawned, map the same shards for themselves.

Shapes: N rows, B clips of a batch, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qwen_term_retrieval.audio.file_audio import FileAudio
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.feature import MmapAudio
from qwen_term_retrieval.packs.format.open_shards import shard_samples
from qwen_term_retrieval.registration import row_numbers

if TYPE_CHECKING:
    import torch

    from qwen_term_retrieval.audio.collate import PcmBuffers


class ClipReader:
    """Random access to the audio of a dataset, shuffled, selected or concatenated as it may be.

    Args:
        dataset: with a column of `MmapAudio` or `FileAudio`.
        column: its name.

    Raises:
        TypeError: the column holds no clips of this library.
        ValueError: rows without audio.
    """

    def __init__(self, dataset: datasets.Dataset, column: str = "audio") -> None:
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(f"expected a Dataset, as load_dataset(…, split=…) gives it, not {type(dataset).__name__}")
        feature = dataset.features.get(column)
        if not isinstance(feature, MmapAudio | FileAudio):
            raise TypeError(f"column {column!r} is {feature}, not packed audio (MmapAudio); pack it with `qtr pack`")
        references = dataset.data.column(column)
        if references.null_count:
            raise ValueError(f"{references.null_count} of {len(references)} rows have no audio; filter them out first")
        rows = row_numbers(dataset)
        self._column = column
        # As narrow as they can be: five million rows are 65 MB, shared by the workers that are forked later.
        self._length_N = _to_numpy(_field(references, "length").chunks, np.int32, rows)
        self._clips: datasets.Dataset | None = None
        if isinstance(feature, FileAudio) or feature.verify:
            self._clips = dataset.select_columns([column])
            return
        shards = _field(references, "shard").dictionary_encode().unify_dictionaries()
        self._uids: list[int] = shards.chunk(0).dictionary.to_pylist() if shards.num_chunks else []
        narrowest = np.min_scalar_type(len(self._uids))
        self._shard_N = _to_numpy([chunk.indices for chunk in shards.chunks], narrowest, rows)
        self._offset_N = _to_numpy(_field(references, "offset").chunks, np.int64, rows)
        self._maps: dict[int, memoryview] = {}

    def __len__(self) -> int:
        return len(self._length_N)

    @property
    def num_samples(self) -> np.ndarray:
        """Length of each clip: int32 (N,)."""
        return self._length_N

    def views(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """int16 (num_samples,) of each clip, read-only; of packed clips, windows of the memory-mapped shards.

        Raises:
            MissingShardError: the pack is not where it was; PackError: a reference points past its shard's end, or
                verified audio was altered; BadAudioError: a file is gone or damaged.
        """
        return [np.asarray(window) for window in self._windows(np.asarray(indices))]

    def gather(
        self, indices: Sequence[int] | np.ndarray, *, buffers: PcmBuffers | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clips as one batch: pcm_BS int16, zeros after each, and num_samples_B int64; see `pad_pcm`."""
        from qwen_term_retrieval.audio.collate import pad_windows

        if not len(indices):
            raise ValueError("a batch needs at least one clip")
        return pad_windows(self._windows(np.asarray(indices)), buffers)

    def _windows(self, indices: np.ndarray) -> list[memoryview]:
        if self._clips is not None:
            return [clip.pcm.data for clip in self._clips[indices.tolist()][self._column]]
        lengths = self._length_N[indices]
        starts = self._offset_N[indices]
        places = zip(self._shard_N[indices].tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        maps = self._maps
        windows = [(maps.get(shard) or self._map(shard))[start:end] for shard, start, end in places]
        if sum(map(len, windows)) != int(lengths.sum()):
            raise PackError("a row reaches past the end of its shard; the dataset and the pack do not match")
        return windows

    def _map(self, shard: int) -> memoryview:
        self._maps[shard] = shard_samples(self._uids[shard]).data
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}


def _field(references: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.field(name) for chunk in references.chunks], pa.int64())


def _to_numpy(chunks: Sequence[pa.Array], dtype: npt.DTypeLike, rows: np.ndarray | None) -> np.ndarray:
    # Arrow checks the cast: a clip of 37 hours has too many samples for an int32.
    values = np.concatenate(
        [np.zeros(0, dtype), *(chunk.cast(pa.from_numpy_dtype(np.dtype(dtype))).to_numpy() for chunk in chunks)]
    )
    return values if rows is None else values[rows]
