"""`AudioClip`: audio that is read when it is asked for, with a reference to it in place of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import soundfile

_FULL_SCALE = np.float32(1 / 32768)


class AudioClip(Mapping[str, Any]):
    """A window of audio whose samples are read when asked for; what it stores is a reference to them.

    `FIELDS` names the parts of that reference, as the Arrow column holds them.
    """

    __slots__ = ("length", "sampling_rate")
    FIELDS: ClassVar[tuple[str, ...]]

    def __init__(self, length: int, sampling_rate: int) -> None:
        self.length = length
        self.sampling_rate = sampling_rate

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only."""
        raise NotImplementedError

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples, in blocks of as many as are in memory at once, if they are read at all."""
        yield self.pcm

    def window(self, first: int, length: int) -> AudioClip:
        """`length` samples of this clip from sample `first` on, as a reference."""
        raise NotImplementedError

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.length / self.sampling_rate

    def trim(self, start: float, end: float) -> AudioClip:
        """The window from `start` to `end` seconds of this clip: a new reference, no samples are copied.

        Raises:
            ValueError: unless 0 ≤ start < end ≤ duration.
        """
        first, last = round(start * self.sampling_rate), round(end * self.sampling_rate)
        if not 0 <= first < last <= self.length:
            raise ValueError(f"cannot trim a clip of {self.duration:.3f} s to {start} … {end} s")
        return self.window(first, last - first)

    def to_wav(self, file: str | Path | BinaryIO) -> None:
        """Write 16-bit WAV to a path or a binary file."""
        soundfile.write(file, self.pcm, self.sampling_rate, subtype="PCM_16", format="WAV")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) == np.int16:
            return self.pcm.copy() if copy else self.pcm
        samples = np.multiply(self.pcm, _FULL_SCALE, dtype=np.float32)
        return samples if dtype is None else samples.astype(dtype, copy=False)

    def __getitem__(self, key: str) -> Any:
        if key == "array":
            return self.__array__()
        if key == "sampling_rate" or key in self.FIELDS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        # What `datasets` stores: the fields of the reference, and no more.
        return iter(self.FIELDS)

    def __len__(self) -> int:
        return len(self.FIELDS)

    # Mapping compares by content, and datasets 5.2 decodes the items of a List only if decoded != raw.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
