"""Seeds and mutations of the fuzz campaign: real speech and real manifests, cut, flipped, spliced and lied about."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from pyarrow import parquet

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE

AUDIO_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "24-bit wav": ("WAV", "PCM_24"),
    "float wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
SUFFIX = {"24-bit wav": ".wav", "float wav": ".wav"}
MANIFESTS = ("jsonl", "json", "csv", "tsv", "parquet")
# Values that a careless or hostile writer puts into a field.
BAD_VALUES = (
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"../../etc/passwd"',
    b'"s3://nowhere/x.wav"',
    b"[null, 1, [2]]",
    b"99999999999999999999",
    b'"' + b"x" * 5000 + b'"',
)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)

Mutation = Callable[[bytes, np.random.Generator], bytes]


def encoded(pcm: np.ndarray, kind: str) -> bytes:
    """One of `AUDIO_FORMATS`, from int16 (num_samples,) at 16 kHz."""
    container, subtype = AUDIO_FORMATS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLING_RATE, format=container, subtype=subtype)
    return buffer.getvalue()


def manifest(kind: str, audio: Sequence[str]) -> bytes:
    """One of `MANIFESTS` over the files `audio`, with terms, spans and a column of its own."""
    rows = [
        {
            "audio": name,
            "key": f"clip/{number}",
            "text": f"say term {number}",
            "terms": [f"term {number}"],
            "term_starts": [0.1],
            "term_ends": [0.3],
            "speaker": f"voice {number % 2}",
            "take": number,
        }
        for number, name in enumerate(audio)
    ]
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    separator = "\t" if kind == "tsv" else ","
    cells = [[value[0] if isinstance(value, list) else value for value in row.values()] for row in rows]
    lines: list[list[object]] = [list(rows[0]), *cells]
    return "".join(separator.join(map(str, line)) + "\n" for line in lines).encode()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_legacy_shard(folder: Path, clips: Sequence[np.ndarray]) -> Path:
    """A shard of the system before this one (int16, headerless) and its index; returns the index."""
    lengths = np.array([len(pcm) for pcm in clips], np.int64)
    (folder / "shard_00000.dat").write_bytes(b"".join(pcm.tobytes() for pcm in clips))
    names = [f"POD/{number}" for number in range(len(clips))]
    index = folder / "shard_00000.index.npz"
    np.savez(
        index,
        key=np.array(names),
        relpath=np.array([f"{name}.wav" for name in names]),
        offset=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        length=lengths,
        sr=np.int64(SAMPLING_RATE),
    )
    return index


def _span(content: bytes, rng: np.random.Generator, longest: int = 64) -> tuple[int, int]:
    start = int(rng.integers(0, max(len(content), 1)))
    return start, min(start + int(rng.integers(1, longest + 1)), len(content))


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, max(len(content), 1)))]


def with_flipped_bits(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(0, len(changed), int(rng.integers(1, 9))) if changed else ():
        changed[position] ^= 1 << int(rng.integers(0, 8))
    return bytes(changed)


def with_random_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + rng.bytes(end - start) + content[end:]


def with_zeros(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng, 512)
    return content[:start] + bytes(end - start) + content[end:]


def without_a_span(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def with_a_repeated_span(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng, 4096)
    return content[:end] + content[start:end] * int(rng.integers(1, 8)) + content[end:]


def with_an_extreme_number(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes near the start or the end, where formats keep their sizes."""
    width = int(rng.choice([1, 2, 4, 8]))
    place = int(rng.integers(0, max(min(256, len(content) - width), 1)))
    start = place if rng.random() < 0.7 else max(len(content) - width - place, 0)
    number = int(rng.choice(EXTREMES)) & ((1 << 8 * width) - 1)
    in_bytes = number.to_bytes(width, "little" if rng.random() < 0.5 else "big")
    return content[:start] + in_bytes + content[start + width :]


def with_a_bad_value(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a JSON value or a cell."""
    values = list(re.finditer(rb'(?<=: )("[^"]*"|\[[^\]]*\]|[\d.]+)|(?<=[,\t])[^,\t\n]+', content))
    if not values:
        return with_random_bytes(content, rng)
    value = values[int(rng.integers(0, len(values)))]
    bad = BAD_VALUES[int(rng.integers(0, len(BAD_VALUES)))]
    return content[: value.start()] + bad + content[value.end() :]


BINARY_MUTATIONS: tuple[Mutation, ...] = (
    truncated,
    with_flipped_bits,
    with_random_bytes,
    with_zeros,
    without_a_span,
    with_a_repeated_span,
    with_an_extreme_number,
)
TEXT_MUTATIONS: tuple[Mutation, ...] = (*BINARY_MUTATIONS[:-1], with_a_bad_value, with_a_bad_value, with_a_bad_value)


def mutated(content: bytes, *, is_text: bool, seed: int) -> tuple[bytes, str]:
    """One to three mutations after each other, and their names. The same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    mutations = TEXT_MUTATIONS if is_text else BINARY_MUTATIONS
    names = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        mutation = mutations[int(rng.integers(0, len(mutations)))]
        content = mutation(content, rng)
        names.append(mutation.__name__)
    return content, ", ".join(names)
