"""`FileAudio`, the `datasets` feature of audio that stays in its own files, and `FileClip`, what its rows decode to.

The same rows as a pack, and the same samples bit for bit, for a look at a corpus or a disk with no room for a pack:
each read decodes a file. Arrow holds which file, as it was when the dataset was made (size and time), and which of its
samples, counted at the column's rate. A file that is gone or has changed since is an error that names row and path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import soundfile

from qwen_term_retrieval.audio.clip import AudioClip
from qwen_term_retrieval.audio.clip_feature import ClipFeature
from qwen_term_retrieval.audio.decoding import EXACT_IN_INT16, pcm_blocks
from qwen_term_retrieval.audio.sound_files import UnreadableSoundError, opened_sound, reason
from qwen_term_retrieval.audio.sources import FileSlice
from qwen_term_retrieval.errors import BadAudioError

FILE_REFERENCE_TYPE = pa.struct(
    {
        "key": pa.string(),
        "path": pa.string(),
        # Of an encoded recording inside another file, as a tar has it; null where the file is the recording.
        "byte_offset": pa.int64(),
        "num_bytes": pa.int64(),
        "suffix": pa.string(),
        # Nanoseconds; null where the path is a URL, whose server is not asked.
        "modified": pa.int64(),
        # The one to take, from 0; null for the mean of all.
        "channel": pa.int16(),
        "start": pa.int64(),
        "length": pa.int64(),
    }
)
# Decoded recordings kept by this process, for segments of one recording that are read one after another.
RECENT_BYTES = 64 << 20
# Seeking finds the very sample in these containers with these encodings; after a seek in Ogg, MP3 or ADPCM, the decoder
# gives other samples than in a stream.
_SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST"})
_STATELESS = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
_STREAMED = frozenset({".mp3", ".oga", ".ogg", ".opus"})
_recent: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()


class FileClip(AudioClip):
    """A window of a recording in a file: `start` and `length` in samples at `sampling_rate`."""

    __slots__ = ("byte_offset", "channel", "key", "modified", "num_bytes", "path", "start", "suffix")
    FIELDS = tuple(FILE_REFERENCE_TYPE.names)

    def __init__(
        self,
        key: str,
        path: str,
        byte_offset: int | None,
        num_bytes: int | None,
        suffix: str,
        modified: int | None,
        channel: int | None,
        start: int,
        length: int,
        sampling_rate: int,
    ) -> None:
        super().__init__(length, sampling_rate)
        self.key = key
        self.path = path
        self.byte_offset = byte_offset
        self.num_bytes = num_bytes
        self.suffix = suffix
        self.modified = modified
        self.channel = channel
        self.start = start

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only, decoded now (or a moment ago).

        Raises:
            BadAudioError: the file is gone, has changed, or cannot be decoded; with key and path.
        """
        self._check_unchanged()
        try:
            pcm = self._seek() if self._recording not in _recent else None
            if pcm is None:
                pcm = self._decode()[self.start : self.start + self.length]
        except BadAudioError as error:
            raise self._error(f"{error}. Mend the file, or drop the row") from error
        if len(pcm) != self.length:
            raise self._error(f"its header promises {self.length - len(pcm)} samples more than it holds: it is damaged")
        return pcm

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples in order; those of a long recording as they are decoded, so that it is never in memory whole."""
        if 2 * (self.start + self.length) <= RECENT_BYTES or self._recording in _recent:
            yield self.pcm
            return
        self._check_unchanged()
        first, last, now = self.start, self.start + self.length, 0
        try:
            for pcm, _ in pcm_blocks(self._audio(), self.sampling_rate, channel=self.channel):
                own = pcm[max(0, first - now) : last - now]
                now += len(pcm)
                if len(own):
                    yield own
                if now >= last:
                    return
        except BadAudioError as error:
            raise self._error(f"{error}. Mend the file, or drop the row") from error
        raise self._error(f"its header promises {last - now} samples more than it holds: it is damaged")

    @property
    def _recording(self) -> tuple[Any, ...]:
        return (self.path, self.byte_offset, self.num_bytes, self.modified, self.channel, self.sampling_rate)

    def _check_unchanged(self) -> None:
        if self.modified is None:
            return
        try:
            status = Path(self.path).stat()
        except OSError as error:
            raise self._error(f"{error.strerror}. If the corpus was moved, load it again from its new place") from error
        if status.st_mtime_ns != self.modified or (self.byte_offset is None and status.st_size != self.num_bytes):
            raise self._error(
                "the file has changed since the dataset was loaded; load it again with download_mode='force_redownload'"
            )

    def _seek(self) -> np.ndarray | None:
        """The window alone, where it can be had exactly without decoding what comes before it."""
        if (self.suffix or Path(self.path).suffix).lower() in _STREAMED:
            return None
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opened_sound(self._audio()))
            except UnreadableSoundError:
                return None  # PyAV's
            can_seek = file.format in _SEEKABLE and file.subtype in _STATELESS
            if file.samplerate != self.sampling_rate or not can_seek:
                return None
            is_exact = (file.channels == 1 or self.channel is not None) and file.subtype in EXACT_IN_INT16
            try:
                file.seek(self.start)
                frames = file.read(self.length, dtype="int16" if is_exact else "float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise BadAudioError(f"corrupt near sample {self.start} ({reason(error)})") from error
        return self._joined(frames, self.sampling_rate)

    def _decode(self) -> np.ndarray:
        """The whole recording."""
        pcm = _recent.pop(self._recording, None)
        if pcm is None:
            pcm = self._joined(self._audio())
        _recent[self._recording] = pcm
        while len(_recent) > 1 and sum(kept.nbytes for kept in _recent.values()) > RECENT_BYTES:
            _recent.popitem(last=False)
        return pcm

    def _joined(self, audio: str | FileSlice | np.ndarray, array_rate: int | None = None) -> np.ndarray:
        blocks = pcm_blocks(audio, self.sampling_rate, array_rate=array_rate, channel=self.channel)
        pcms = [pcm for pcm, _ in blocks]
        whole = pcms[0] if len(pcms) == 1 else np.concatenate(pcms)
        whole.flags.writeable = False
        return whole

    def _audio(self) -> str | FileSlice:
        if self.byte_offset is None:
            return self.path
        return FileSlice(Path(self.path), self.byte_offset, self.num_bytes or 0, self.suffix)

    def _error(self, problem: str) -> BadAudioError:
        return BadAudioError(f"row {self.key!r}, file {self.path}: {problem}")

    def window(self, first: int, length: int) -> FileClip:
        fields = dict(self) | {"start": self.start + first, "length": length}
        return FileClip(**fields, sampling_rate=self.sampling_rate)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileClip, (*(getattr(self, name) for name in self.FIELDS), self.sampling_rate)

    def __repr__(self) -> str:
        return f"FileClip({self.duration:.2f} s, {self.path}, start {self.start}, length {self.length})"


@dataclass
class FileAudio(ClipFeature):
    """Feature of a column of audio in files; rows decode to `FileClip`, or with `decode=False` to bare references."""

    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[Any] = FILE_REFERENCE_TYPE
    not_stored: ClassVar[str] = "references to audio files"
    not_published: ClassVar[str] = (
        "references to audio files on this machine. To publish them as a pack: `qtr pack`, then "
        "Pack.open(folder).push_to_hub('USER/NAME'). To publish audio that needs no plugin: "
        "qwen_term_retrieval.to_hf_audio(dataset).push_to_hub('USER/NAME')"
    )
    _type: str = field(default="FileAudio", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> AudioClip:
        return value if isinstance(value, FileClip) else FileClip(**value, sampling_rate=self.sampling_rate)
