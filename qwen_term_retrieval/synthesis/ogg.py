"""Ogg Opus that is the same bytes each time.

libsndfile (1.2) gives every Ogg stream a random serial number. Here it is set to zero afterwards, and the checksums of
the pages, which cover it, are computed anew (RFC 3533).
"""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

_SERIAL, _CHECKSUM, _NUM_SEGMENTS, _HEADER_SIZE = 14, 22, 26, 27
_POLYNOMIAL = 0x04C11DB7
_LEVEL = 0.93


def encode_opus(pcm: np.ndarray, sampling_rate: int) -> bytes:
    """Encode mono int16 (num_samples,) as Opus in Ogg, about 24 kbit/s at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, pcm, sampling_rate, format="OGG", subtype="OPUS", compression_level=_LEVEL)
    return with_serial_zero(file.getvalue())


def with_serial_zero(ogg: bytes) -> bytes:
    """Set the stream serial number of every page to zero and mend the pages' checksums."""
    pages = bytearray(ogg)
    start = 0
    while start < len(pages):
        if pages[start : start + 4] != b"OggS":
            raise ValueError(f"not an Ogg page at byte {start} of {len(pages)}")
        num_segments = pages[start + _NUM_SEGMENTS]
        header_end = start + _HEADER_SIZE + num_segments
        end = header_end + sum(pages[start + _HEADER_SIZE : header_end])
        pages[start + _SERIAL : start + _SERIAL + 4] = bytes(4)
        pages[start + _CHECKSUM : start + _CHECKSUM + 4] = bytes(4)
        pages[start + _CHECKSUM : start + _CHECKSUM + 4] = struct.pack("<I", _checksum(pages[start:end]))
        start = end
    return bytes(pages)


def _checksum(page: bytes | bytearray) -> int:
    checksum = 0
    for byte in page:
        checksum = (checksum << 8) & 0xFFFFFFFF ^ _TABLE[checksum >> 24 ^ byte]
    return checksum


def _table_entry(byte: int) -> int:
    remainder = byte << 24
    for _ in range(8):
        remainder = remainder << 1 ^ (_POLYNOMIAL if remainder & 0x80000000 else 0)
    return remainder & 0xFFFFFFFF


_TABLE = tuple(map(_table_entry, range(256)))
