"""Encoded recordings, wherever they lie, opened and checked before anything is decoded or allocated.

`opened_sound` opens what libsndfile reads, `opened_recording` what PyAV reads too.

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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import soundfile

from qwen_term_retrieval.audio.containers import Container, opened_container
from qwen_term_retrieval.audio.sources import FileSlice, is_url
from qwen_term_retrieval.audio.urls import file_system
from qwen_term_retrieval.audio.wav_headers import OPEN_ENDED, samples_behind
from qwen_term_retrieval.errors import BadAudioError

MAX_CHANNELS = 64
RATES = (1_000, 768_000)
# What is no larger is read at once; a longer recording is read as it is decoded.
BYTES_IN_MEMORY = 1 << 25

# Chunks of samples in libsndfile's log of a header: "data : 80000 (should be 39978)".
_SHORTFALL = re.compile(r"^\s*(?:data|SSND|riff|Riff size|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_SHORTFALL_BYTES = 64
# Lengths that libsndfile estimates; it stands for an unknown length.
_ESTIMATED = ("MP3",)
_UNKNOWN_FRAMES = 1 << 62

_Opened = TypeVar("_Opened", soundfile.SoundFile, Container)
EncodedAudio = str | Path | FileSlice | bytes | BinaryIO


class UnreadableSoundError(BadAudioError):
    """A file that libsndfile does not know how to read."""


class AudioHeader(NamedTuple):
    """What the header of a recording says: frames (samples a channel), rate in Hz, channels."""

    num_frames: int
    sampling_rate: int
    num_channels: int


def probe(audio: EncodedAudio) -> AudioHeader:
    """Length, rate and channels of a recording, from its header, without decoding it.

    What takes PyAV is decoded to be counted: its containers tell the length to a packet, if at all.

    >>> probe("talk.flac")
    AudioHeader(num_frames=960000, sampling_rate=16000, num_channels=1)

    For MP3 of variable bit rate without a Xing header the length is libsndfile's estimate, beyond which it does not
    read; such files, which pipes leave, should be written anew.

    Raises:
        BadAudioError: missing, unreadable, cut short, or with an impossible header.
    """
    with opened_recording(audio) as file:
        if isinstance(file, Container):
            num_frames = sum(len(block) for block in file.blocks(file.samplerate))
            return AudioHeader(num_frames, file.samplerate, file.channels)
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
def opened_recording(audio: EncodedAudio, track: int | None = None) -> Iterator[soundfile.SoundFile | Container]:
    """A recording that libsndfile reads, or else one that PyAV does; see `opened_sound`.

    Args:
        audio: path, URL, slice of a file, encoded bytes, or a binary file, which is read from its beginning.
        track: of a container with several audio tracks, counted from 0; None: its default.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened_sound(audio))
        except UnreadableSoundError as error:
            source = stack.enter_context(_opened_source(audio))
            yield _checked(stack.enter_context(opened_container(source, track, error)))
        else:
            if track:
                raise BadAudioError(f"has no audio track {track}, counted from 0, but one")
            yield file


@contextmanager
def opened_sound(audio: EncodedAudio) -> Iterator[soundfile.SoundFile]:
    """A recording as an open `SoundFile` whose header has been checked.

    Raises:
        UnreadableSoundError: not in a format of libsndfile.
        BadAudioError: missing, unreadable, cut short, or with an impossible header.
    """
    with _opened_source(audio) as source:
        try:
            file = _ForwardSoundFile(source)
        except (soundfile.LibsndfileError, TypeError) as error:
            # TypeError: soundfile asks for rate and channels when the suffix says headerless PCM (.raw).
            raise UnreadableSoundError(
                f"soundfile cannot read it ({reason(error)}); convert it to WAV, FLAC or Ogg"
            ) from error
        with file:
            behind = samples_behind(file, source)
            if behind is None:
                _check_header(_checked(file))
                yield file
                return
            shape = {"samplerate": file.samplerate, "channels": file.channels, "subtype": file.subtype}
        with ExitStack() as stack:
            if isinstance(source, bytes):
                source = stack.enter_context(Path(os.fsdecode(source)).open("rb"))
            window = cast(BinaryIO, _Window(source, *behind))
            yield _checked(stack.enter_context(_ForwardSoundFile(window, format="RAW", endian="LITTLE", **shape)))


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


def _checked(file: _Opened) -> _Opened:
    if file.channels < 1:
        raise BadAudioError("its header says that it has no channel")
    if file.channels > MAX_CHANNELS:
        raise BadAudioError(f"its header says {file.channels} channels; the limit is {MAX_CHANNELS}")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise BadAudioError(f"its header says {file.samplerate} Hz; rates are from {RATES[0]} to {RATES[1]} Hz")
    return file


def _check_header(file: soundfile.SoundFile) -> None:
    if "should be" not in (log := file.extra_info):
        return
    for said, found in ((int(said), int(found)) for said, found in _SHORTFALL.findall(log)):
        if found + _SHORTFALL_BYTES < said < OPEN_ENDED:
            raise BadAudioError(f"cut short: {found} of the {said} bytes that its header says")


@contextmanager
def _opened_source(audio: EncodedAudio) -> Iterator[bytes | BinaryIO]:
    """What `SoundFile` opens: the name of a whole local file, else a stream."""
    if isinstance(audio, bytes):
        yield io.BytesIO(audio)
    elif isinstance(audio, FileSlice):
        with Path(_local_file(audio.path)).open("rb") as file:
            if file.seek(0, io.SEEK_END) < audio.offset + audio.num_bytes:
                raise BadAudioError(f"{audio.path} ends before byte {audio.offset + audio.num_bytes}; it was cut short")
            file.seek(audio.offset)
            small = audio.num_bytes <= BYTES_IN_MEMORY
            yield (
                io.BytesIO(file.read(audio.num_bytes))
                if small
                else cast(BinaryIO, _Window(file, audio.offset, audio.num_bytes))
            )
    elif isinstance(audio, str) and is_url(audio):
        with _remote_file(audio) as file:
            yield file
    elif not isinstance(audio, str | Path):
        _rewind(audio)
        yield audio
    else:
        # As bytes: soundfile (0.14) fails on the name of a file that is no UTF-8.
        yield os.fsencode(_local_file(audio))


def _rewind(file: BinaryIO) -> None:
    if isinstance(file, io.TextIOBase):
        raise BadAudioError("the file is open as text; open it with mode 'rb'")
    try:
        file.seek(0)
    except (OSError, ValueError) as error:
        raise BadAudioError(f"the file cannot be read from its beginning ({error}); give its bytes") from error


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

    def __init__(self, file: BinaryIO, offset: int, num_bytes: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, num_bytes, 0

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
