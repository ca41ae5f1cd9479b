"""Frames of a frozen audio tower, computed once and read from disk ever after.

A folder holds the frames of one tower (its weights, layers, and number type are the folder's name) in segments: a
raw file of frames and an index of what lies where, by a hash of each clip's samples. Building adds a segment with the
clips that no segment has; a build that is killed keeps every finished segment. Several processes may add to one folder:
ranks give each other a share. Whole batches come out padded, ready for `TermRetrievalModel.forward`;
half a megabyte a second of speech is nothing a memory map cannot serve.

Shapes: B clips, T frames, H hidden, L layers.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.models.evaluation_mode import evaluation_mode
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.weights.checkpoints import tower_sha256
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.packages import cache_root

_FORMAT = 1
_SEGMENT_BYTES = 256 << 20
_INDEX_DTYPE = np.dtype([("hash", "V16"), ("offset", "<i8"), ("num_frames", "<i4")])


class FrameCacheError(RuntimeError):
    """A segment of the cache is not what its index says."""


class FrameCache:
    """Frames of a list of clips, by position in that list.

    Example:
        >>> cache = cached_frames(model, rows)                            # doctest: +SKIP
        >>> frames_BTH, num_frames_B = cache.get([3, 14, 15])             # doctest: +SKIP
        >>> model(frames_BTH=frames_BTH, num_frames_B=num_frames_B)       # doctest: +SKIP
    """

    def __init__(self, folder: Path, hashes: Sequence[bytes], num_layers: int, hidden_size: int, dtype: np.dtype):
        self.folder = folder
        self.num_computed = 0
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._hashes = list(hashes)
        self._segments: list[np.ndarray] = []
        self._opened: set[Path] = set()
        self._place_of: dict[bytes, tuple[int, int, int]] = {}
        self.open_segments()

    @classmethod
    def open(
        cls,
        model: TermRetrievalModel,
        digests: Sequence[tuple[bytes, int]],
        cache_dir: str | Path | None = None,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> FrameCache:
        """The cache of these clips as it is on disk, whatever it lacks; see `frames_by_all_ranks`, which computes that.

        Args:
            model: its audio tower must be frozen.
            digests: what `clip_digests` gives.
            cache_dir: by default in the library's cache.
            dtype: float16 halves the disk space and changes frames by less than a thousandth.

        Raises:
            ValueError: the tower is being trained.
        """
        if any(values.requires_grad for values in model.audio_tower.parameters()):
            raise ValueError("the audio tower is being trained, so its frames change: train without a cache")
        folder = Path(cache_dir or cache_root() / "features") / _tower_key(model, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        hashes = [digest for digest, _ in digests]
        return cls(folder, hashes, model.config.audio_layers, model.audio_tower.hidden_size, np.dtype(dtype))

    def missing_batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """The clips whose frames are still to be computed, each sound once, in batches of similar length.

        Batches are the unit of sharing: how far a clip is padded shows in the last bit of its frames.
        """
        first_of = {digest: index for index, digest in reversed(list(enumerate(self._hashes)))}
        missing = sorted(index for digest, index in first_of.items() if digest not in self._place_of)
        batches = length_buckets([lengths[index] for index in missing], batch_size)
        return [[missing[position] for position in batch] for batch in batches]

    def __len__(self) -> int:
        return len(self._hashes)

    def __reduce__(self) -> tuple[Any, ...]:
        """A spawned DataLoader worker opens the files anew: pickled memory maps would be sent whole."""
        return FrameCache, (self.folder, self._hashes, self._num_layers, self._hidden_size, self._dtype)

    def get(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """frames_BTH, or (B, L, T, H) for several layers, zero behind a clip's end, and num_frames_B, on the CPU."""
        places = [self._place_of[self._hashes[index]] for index in indices]
        num_frames_B = [place[2] for place in places]
        shape = (len(places), self._num_layers, max(num_frames_B), self._hidden_size)
        frames_BLTH = np.empty(shape, self._dtype)
        for row_LTH, (segment, offset, frames) in zip(frames_BLTH, places, strict=True):
            size = self._num_layers * frames * self._hidden_size
            values = self._segments[segment][offset : offset + size]
            row_LTH[:, :frames] = values.reshape(self._num_layers, frames, self._hidden_size)
            row_LTH[:, frames:] = 0
        stored = torch.from_numpy(frames_BLTH)
        return stored[:, 0] if self._num_layers == 1 else stored, torch.tensor(num_frames_B)

    def compute(
        self,
        model: TermRetrievalModel,
        clips: Any,
        batches: Sequence[Sequence[int]],
        names: Sequence[str],
        *,
        show_progress: bool = True,
    ) -> None:
        """Compute the frames of these batches and add them to the folder; what is finished before an error is kept."""
        if not batches:
            return
        writer = _SegmentWriter(self.folder, self._dtype)
        num_clips = sum(map(len, batches))
        try:
            with (
                evaluation_mode(model),
                Progress(total=num_clips, desc="audio frames", unit="clip", shown=show_progress) as bar,
            ):
                for indices in batches:
                    pcm_BS, num_samples_B = pad_pcm(
                        [clip_pcm(clips[index], SAMPLING_RATE, name=names[index]) for index in indices]
                    )
                    model.audio_tower.check_lengths(num_samples_B, [names[index] for index in indices])
                    frames_BTH, num_frames_B = model.audio_frames(pcm_BS.to(model.device), num_samples_B)
                    frames_BLTH = frames_BTH.unflatten(0, (-1, 1)) if frames_BTH.dim() == 3 else frames_BTH
                    rows = frames_BLTH.to("cpu", getattr(torch, self._dtype.name)).numpy()
                    for index, row_LTH, frames in zip(indices, rows, num_frames_B.tolist(), strict=True):
                        writer.add(self._hashes[index], row_LTH[:, :frames])
                    if writer.num_bytes >= _SEGMENT_BYTES:
                        writer.finish()
                        writer = _SegmentWriter(self.folder, self._dtype)
                    self.num_computed += len(indices)
                    bar.update(len(indices))
        finally:
            if writer.num_bytes:
                writer.finish()
            self.open_segments()

    def open_segments(self) -> None:
        """Open what has come into the folder since, from this process or another.

        Raises:
            FrameCacheError: a segment is not what its index says.
        """
        for index_path in sorted({*self.folder.glob("*.npy")} - self._opened):
            self._open_segment(index_path)

    def _open_segment(self, index_path: Path) -> None:
        index = np.load(index_path, allow_pickle=False)
        frames_path = index_path.with_suffix(".frames")
        stride = self._num_layers * self._hidden_size
        if index.dtype != _INDEX_DTYPE or not frames_path.is_file():
            raise FrameCacheError(f"{index_path} is not a whole segment of the frame cache. Delete {self.folder}.")
        frames = np.memmap(frames_path, self._dtype, mode="r")
        if len(frames) != int(index["num_frames"].sum()) * stride:
            raise FrameCacheError(f"{frames_path} has another size than its index says. Delete {self.folder}.")
        self._opened.add(index_path)
        segment = len(self._segments)
        self._segments.append(frames)
        for digest, offset, num_frames in index.tolist():
            self._place_of[digest] = (segment, offset, num_frames)


class _SegmentWriter:
    """Collects frames in memory and writes them as one segment: frames first, the index that makes them count last."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder = folder
        self.dtype = dtype
        self.num_bytes = 0
        self._rows: list[np.ndarray] = []
        self._index: list[tuple[bytes, int, int]] = []

    def add(self, digest: bytes, frames_LTH: np.ndarray) -> None:
        self._index.append((digest, self.num_bytes // self.dtype.itemsize, frames_LTH.shape[1]))
        self._rows.append(np.array(frames_LTH, self.dtype))
        self.num_bytes += self._rows[-1].nbytes

    def finish(self) -> None:
        """Write the segment."""
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        with atomic_file(path.with_suffix(".frames")) as file:
            for row in self._rows:
                file.write(row.data)
        with atomic_file(path) as file:
            np.save(file, np.array(self._index, _INDEX_DTYPE), allow_pickle=False)


def clip_digests(clips: Any, names: Sequence[str]) -> list[tuple[bytes, int]]:
    """16 bytes of each clip that tell its samples from all others, and how many they are.

    Raises:
        ValueError: a clip is unfit; the message names it.
    """
    digests = []
    for index in range(len(clips)):
        pcm = clip_pcm(clips[index], SAMPLING_RATE, name=names[index])
        digests.append((xxhash.xxh3_128_digest(np.ascontiguousarray(pcm).data), len(pcm)))
    return digests


def _tower_key(model: TermRetrievalModel, dtype: str) -> str:
    """Everything that the frames depend on but the audio."""
    tower = model.audio_tower
    weights = tower_sha256(tower.encoder.state_dict())
    parts = (_FORMAT, type(tower).__name__, weights, model.config.audio_layers, tower.encoder.dtype, dtype)
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]
