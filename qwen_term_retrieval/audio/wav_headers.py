"""WAV files whose header does not know how long they are: where their samples really lie.

A recorder that was switched off leaves a length of 0, one that writes to a pipe 0xFFFFFFFF or 2147483647, and what
goes past 4 GiB does not fit the field. libsndfile believes the first and reads 4 GiB of the last.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

import soundfile

# Writers to pipes leave sizes like 0xFFFFFFFF and 0x7FFFFFFF less a header.
OPEN_ENDED = 0x7FFFF000
# Encodings that can be read without a header, and the bytes of a sample.
_BYTES_OF = {"PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
# Of a frame that the header cuts in two.
_SLACK_BYTES = 1024
_MOST_CHUNKS = 100


def samples_behind(header: soundfile.SoundFile, source: bytes | BinaryIO) -> tuple[int, int] | None:
    """First byte and number of bytes of the samples of a WAV whose header says fewer; None where it is right.

    Args:
        header: the opened file.
        source: its name or stream.
    """
    if header.format not in ("WAV", "WAVEX") or header.subtype not in _BYTES_OF:
        return None
    if 0 < header.frames * header.channels * _BYTES_OF[header.subtype] < OPEN_ENDED - _SLACK_BYTES:
        return None
    if isinstance(source, bytes):
        with Path(os.fsdecode(source)).open("rb") as file:
            return _samples_behind(file)
    place = source.tell()
    try:
        return _samples_behind(source)
    finally:
        source.seek(place)


def _samples_behind(file: BinaryIO) -> tuple[int, int] | None:
    end = file.seek(0, io.SEEK_END)
    found = _data_chunk(file, 12, end)
    if found is None:
        return None
    offset, size = found
    rest = end - offset
    if size >= OPEN_ENDED:
        return (offset, rest) if rest > size else None
    # Nothing in it: so it is where only further chunks follow, and so it is not where they make no sense.
    return (offset, rest) if size == 0 and rest > 0 and not _are_chunks(file, offset, end) else None


def _data_chunk(file: BinaryIO, offset: int, end: int) -> tuple[int, int] | None:
    for _ in range(_MOST_CHUNKS):
        if (chunk := _chunk(file, offset, end)) is None:
            return None
        name, size = chunk
        if name == b"data":
            return offset + 8, size
        offset += 8 + size + size % 2
    return None


def _are_chunks(file: BinaryIO, offset: int, end: int) -> bool:
    for _ in range(_MOST_CHUNKS):
        if offset >= end:
            return True
        chunk = _chunk(file, offset, end)
        if chunk is None or not chunk[0].isascii() or not chunk[0].decode("ascii").isprintable():
            return False
        offset += 8 + chunk[1]
        if offset > end:
            return False
        offset += offset % 2
    return False


def _chunk(file: BinaryIO, offset: int, end: int) -> tuple[bytes, int] | None:
    if offset + 8 > end:
        return None
    file.seek(offset)
    name, size = struct.unpack("<4sI", file.read(8))
    return name, size
