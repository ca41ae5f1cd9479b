"""`MmapAudio`, the `datasets` feature of packed audio, and `Clip`, what its rows decode to.

Arrow holds a reference: the uid of a shard, offset and length. A `Clip` is that reference with the samples behind it: a
Mapping, so that `map`, `save_to_disk` and pickling keep the reference; with `__array__`, so that the torch and numpy
formats give float32; and with `["array"]` and `["sampling_rate"]`, as the audio of other datasets has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from qwen_term_retrieval.audio.clip import AudioClip
from qwen_term_retrieval.audio.clip_feature import ClipFeature
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.open_shards import shard_samples
from qwen_term_retrieval.packs.format.verification import verified_samples

REFERENCE_TYPE = pa.struct({"shard": pa.int64(), "offset": pa.int64(), "length": pa.int64()})


class Clip(AudioClip):
    """A window of packed audio; with `verify`, one that proves its samples each time it gives them.

    >>> clip = rows[0]["audio"]
    >>> clip.pcm                                  # int16 (num_samples,), a view: nothing is copied
    >>> clip["array"], clip["sampling_rate"]      # float32 (num_samples,) in [-1, 1), Hz
    >>> clip.trim(0.5, 1.25).to_wav("word.wav")   # seconds
    """

    __slots__ = ("offset", "shard", "verify")
    FIELDS = tuple(REFERENCE_TYPE.names)

    def __init__(self, shard: int, offset: int, length: int, sampling_rate: int, verify: bool = False) -> None:
        super().__init__(length, sampling_rate)
        self.shard = shard
        self.offset = offset
        self.verify = verify

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only: a view of the memory map, or with `verify` a copy that was checked.

        Raises:
            MissingShardError: the pack is not where it was; PackError: the reference points past the shard's end, or
                the samples are not those that were packed.
        """
        if self.verify:
            return verified_samples(self.shard, self.offset, self.length)
        pcm = shard_samples(self.shard)[self.offset : self.offset + self.length]
        if len(pcm) != self.length:
            raise PackError(f"{self!r} reaches past the end of its shard; the dataset and the pack do not match")
        return pcm

    def window(self, first: int, length: int) -> Clip:
        return Clip(self.shard, self.offset + first, length, self.sampling_rate, self.verify)

    def __reduce__(self) -> tuple[Any, ...]:
        return Clip, (self.shard, self.offset, self.length, self.sampling_rate, self.verify)

    def __repr__(self) -> str:
        return f"Clip({self.duration:.2f} s, shard {self.shard:016x}, offset {self.offset}, length {self.length})"


@dataclass
class MmapAudio(ClipFeature):
    """Feature of a column of packed audio; rows decode to `Clip`, or with `decode=False` to the bare reference.

    With `verify`, every read of samples checks the CRC of the packed clip they belong to: altered audio is an error.
    """

    verify: bool = False
    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[Any] = REFERENCE_TYPE
    not_stored: ClassVar[str] = "references to packed audio"
    not_published: ClassVar[str] = (
        "references to a pack on this machine. To publish the pack: Pack.open(folder).push_to_hub('USER/NAME'). To "
        "publish audio that needs no plugin: qwen_term_retrieval.to_hf_audio(dataset).push_to_hub('USER/NAME'), or "
        "upload what `qtr export` writes"
    )
    _type: str = field(default="MmapAudio", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> AudioClip:
        return value if isinstance(value, Clip) else Clip(**value, sampling_rate=self.sampling_rate, verify=self.verify)
