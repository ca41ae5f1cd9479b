"""Encoded recordings, wherever they lie, opened and checked before anything is decoded or allocated: `opened_sound`.

A header can claim anything. What it claims is held against limits and against the size of the file, so that a broken
or hostile one costs an error and no memory. libsndfile takes a cut file for a short one where it can; here it is
refused, where its container says how long it should be (WAV, AIFF, AU, FLAC and their kin; not Ogg, MP3).
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import soundfile

from qwen_term_retrieval.audio.sources import FileSlice, is_url
from qwen_term_retrieval.audio.urls import file_system
from qwen_term_retrieval.errors import BadAudioError

MAX_CHANNELS = 64
RATES = (1_000, 768_000)
# What is no larger is read at once; a longer recording is read as it is decoded.
BYTES_IN_MEMORY = 1 << 25

# Chunks of samples in libsndfile's log of a header: "data : 80000 (should be 39978)".
_SHORTFALL = re.compile(r"^\s*(?:data|SSND|riff|Riff size|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Writers to pipes leave sizes like 0xFFFFFFFF and 0x7FFFFFFF less a header.
_OPEN_ENDED = 0x7FFFF000
_SHORTFALL_BYTES = 64
# Lengths that libsndfile estimates; it stands for an unknown length.
_ESTIMATED = ("MP3",)
_UNKNOWN_FRAMES = 1 << 62


class AudioHeader(NamedTuple):
    """What the header of a recording says: frames (samples a channel), rate in Hz, channels."""

    num_frames: int
    sampling_rate: int
    num_channels: int


def probe(audio: str | Path | FileSlice | bytes) -> AudioHeader:
    """Length, rate and channels of a recording, from its header, without decoding it.

    >>> probe("talk.flac")
    AudioHeader(num_frames=960000, sampling_rate=16000, num_channels=1)

    For MP3 of variable bit rate without a Xing header the length is libsndfile's estimate, beyond which it does not
    read; such files, which pipes leave, should be written anew.

    Raises:
        BadAudioError: missing, unreadable, cut short, or with an impossible header.
    """
    with opened_sound(audio) as file:
        if file.frames >= _UNKNOWN_FRAMES:
            raise BadAudioError("its header does not say how long it is; convert it to WAV or FLAC anew")
        return AudioHeader(file.frames, file.samplerate, file.channels)


class _ForwardSoundFile(soundfile.SoundFile):
    """A recording read from front to back.

    SoundFile (0.14) seeks after every read of a seekable file, to where it is already: MP3 then lacks the bits that its
    frames borrow from earlier ones, and what was read in blocks has a fault at every seam.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def opened_sound(audio: str | Path | FileSlice | bytes) -> Iterator[soundfile.SoundFile]:
    """A recording as an open `SoundFile` whose header has been checked.

    Raises:
        BadAudioError: missing, unreadable, cut short, or with an impossible header.
    """
    with _opened_source(audio) as source:
        try:
            file = _ForwardSoundFile(source)
        except (soundfile.LibsndfileError, TypeError) as error:
            # TypeError: soundfile asks for rate and channels when the suffix says headerless PCM (.raw).
            raise BadAudioError(
                f"soundfile cannot read it ({reason(error)}); convert it to WAV, FLAC or Ogg"
            ) from error
        with file:
            _check_header(file)
            yield file


def read_blocks(file: soundfile.SoundFile, dtype: str, frames_per_block: int) -> Iterator[np.ndarray]:
    """Yield (frames, channels) arrays of `dtype` to the end of the file.

    Raises:
        BadAudioError: corrupt, or with fewer frames than its header says.
    """
    num_frames = _UNKNOWN_FRAMES if file.format in _ESTIMATED else file.frames
    most = max(1, frames_per_block // file.channels)
    num_read = 0
    try:
        while num_read < num_frames:
            block = file.read(min(most, num_frames - num_read), dtype=dtype, always_2d=True)
            if not len(block):
                break
            num_read += len(block)
            yield block
    except soundfile.LibsndfileError as error:
        raise BadAudioError(f"corrupt near sample {num_read} ({reason(error)})") from error
    if num_read < num_frames < _UNKNOWN_FRAMES:
        raise BadAudioError(f"cut short: {num_read} of the {num_frames} samples that its header says")


def reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip().rstrip(".")


def _check_header(file: soundfile.SoundFile) -> None:
    if file.channels > MAX_CHANNELS:
        raise BadAudioError(f"its header says {file.channels} channels; the limit is {MAX_CHANNELS}")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise BadAudioError(f"its header says {file.samplerate} Hz; rates are from {RATES[0]} to {RATES[1]} Hz")
    if "should be" not in (log := file.extra_info):
        return
    for said, found in ((int(said), int(found)) for said, found in _SHORTFALL.findall(log)):
        if found + _SHORTFALL_BYTES < said < _OPEN_ENDED:
            raise BadAudioError(f"cut short: {found} of the {said} bytes that its header says")


@contextmanager
def _opened_source(audio: str | Path | FileSlice | bytes) -> Iterator[bytes | BinaryIO]:
    """What `SoundFile` opens: the name of a whole local file, else a stream."""
    if isinstance(audio, bytes):
        yield io.BytesIO(audio)
    elif isinstance(audio, FileSlice):
        with Path(_local_file(audio.path)).open("rb") as file:
            if file.seek(0, io.SEEK_END) < audio.offset + audio.num_bytes:
                raise BadAudioError(f"{audio.path} ends before byte {audio.offset + audio.num_bytes}; it was cut short")
            file.seek(audio.offset)
            small = audio.num_bytes <= BYTES_IN_MEMORY
            yield io.BytesIO(file.read(audio.num_bytes)) if small else cast(BinaryIO, _Window(file, audio))
    elif isinstance(audio, str) and is_url(audio):
        with _remote_file(audio) as file:
            yield file
    else:
        # As bytes: soundfile (0.14) fails on the name of a file that is no UTF-8.
        yield os.fsencode(_local_file(audio))


def _local_file(path: str | Path) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path costs more)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise BadAudioError(f"the file does not exist{_nearly_named(str(path))}") from error
    except OSError as error:
        raise BadAudioError(f"the file cannot be found: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadAudioError(
            "it is a folder; give the recordings in it" if stat.S_ISDIR(status.st_mode) else "it is no file"
        )
    if not status.st_size:
        raise BadAudioError("the file is empty")
    return str(path)


def _nearly_named(path: str) -> str:
    """A hint, where a file that is not there is there as another system writes its name."""
    others = (path.replace("\\", "/"), *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    found = next((other for other in others if other != path and os.path.isfile(other)), None)  # noqa: PTH113 (a Path raises for a name too long)
    return "" if found is None else f", but {found!a} does: write its slashes and accents so"


@contextmanager
def _remote_file(url: str) -> Iterator[Any]:
    """A broken connection is no bad audio, and stays the OSError it is."""
    try:
        system, path = file_system(url)
        opened = system.open(path, "rb")
    except (FileNotFoundError, KeyError) as error:  # a zip raises KeyError before fsspec 2026.9
        raise BadAudioError("the file does not exist") from error
    except (ValueError, ImportError) as error:
        raise BadAudioError(f"its file system cannot be reached from here: {error}") from error
    with opened as file:
        try:
            start = file.read(BYTES_IN_MEMORY + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BadAudioError(f"its archive is broken here: {error}") from error
        if len(start) > BYTES_IN_MEMORY:
            file.seek(0)
        yield file if len(start) > BYTES_IN_MEMORY else io.BytesIO(start)


class _Window(io.RawIOBase):
    """A slice of an open file, read as a file of its own."""

    def __init__(self, file: BinaryIO, audio: FileSlice) -> None:
        self._file, self._offset, self._size, self._position = file, audio.offset, audio.num_bytes, 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        self._file.seek(self._offset + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
