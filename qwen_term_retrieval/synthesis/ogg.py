"""Ogg Opus that is the same bytes each time.

libsndfile (1.2) gives every Ogg stream a random serial number. Here it is set to zero afterwards, and the checksums of
the pages, which cover it, are computed anew (RFC 3533).
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile

_SERIAL, _CHECKSUM, _NUM_SEGMENTS, _HEADER_SIZE = 14, 22, 26, 27
_LEVEL = 0.93
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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
    """The CRC-32 of zlib, but with the bits of bytes and result in the other order, and without its inversions."""
    inverted = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF)
    return int(f"{inverted ^ 0xFFFFFFFF:032b}"[::-1], 2)
