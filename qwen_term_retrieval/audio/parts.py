"""A part: the decoded audio of a few dozen consecutive utterances, the unit of parallel work and of resuming.

A worker writes `part_N.pcm`, then `part_N.json` with a row a clip. The JSON opens with a signature of all that went
in (rows, file sizes and times, settings): a part that is there with the right signature is not made again. Parts do not
shape the pack: clips are laid into shards one by one, whatever parts they came in.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from qwen_term_retrieval.audio.atomic import atomic_file
from qwen_term_retrieval.audio.decoding import BadAudioError, pcm_blocks
from qwen_term_retrieval.audio.shards import CLIP_ALIGNMENT, FORMAT_VERSION, SAMPLE_BYTES
from qwen_term_retrieval.audio.utterance import CorpusError, TermSpan, Utterance
from qwen_term_retrieval.text.glossary import normalize_term

UTTERANCES_PER_PART = 64
SPAN_SLACK_S = 0.05
SILENCE_S = 1.0


@dataclass(frozen=True)
class PartJob:
    """Work order of one part; it pickles, and needs nothing but a folder that worker and caller both see."""

    number: int
    folder: Path
    utterances: list[Utterance]
    sampling_rate: int
    on_error: str


@dataclass(frozen=True)
class PartResult:
    """What became of a part: clips and samples in it, and the problems met."""

    number: int
    num_clips: int
    num_samples: int
    problems: list[dict[str, str]]


def pcm_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.pcm"


def rows_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.json"


def read_part(folder: Path, number: int) -> dict[str, Any]:
    """`{"signature", "clips": [row with length, crc32, clipped, split, extra], "problems"}` of a finished part."""
    return json.loads(rows_path(folder, number).read_bytes())


def make_part(job: PartJob) -> PartResult:
    """Decode the utterances of a job into its part, unless the same part is there already.

    Raises:
        CorpusError: at the first bad utterance, where `on_error` is "raise".
    """
    signature = _signature(job)
    rows = rows_path(job.folder, job.number)
    if rows.is_file():
        part = read_part(job.folder, job.number)
        if part["signature"] == signature:
            return _result(job.number, part)
    part = {"signature": signature, "clips": [], "problems": []}
    with atomic_file(pcm_path(job.folder, job.number)) as file:
        for utterance in job.utterances:
            _add_clip(utterance, job, file, part)
    with atomic_file(rows) as file:
        file.write(json.dumps(part).encode())
    return _result(job.number, part)


def _result(number: int, part: dict[str, Any]) -> PartResult:
    return PartResult(number, len(part["clips"]), sum(clip["length"] for clip in part["clips"]), part["problems"])


def _signature(job: PartJob) -> str:
    digest = xxhash.xxh3_128()
    digest.update(json.dumps([FORMAT_VERSION, job.sampling_rate, job.on_error]).encode())
    for utterance in job.utterances:
        digest.update(repr((_audio_identity(utterance), utterance.sampling_rate)).encode())
        digest.update(_metadata_json(utterance).encode())
    return digest.hexdigest()


def _audio_identity(utterance: Utterance) -> tuple[Any, ...]:
    audio = utterance.audio
    if isinstance(audio, bytes):
        return (xxhash.xxh3_128_hexdigest(audio),)
    if isinstance(audio, np.ndarray):
        return (str(audio.dtype), audio.shape, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(audio).data))
    try:
        status = Path(audio).stat()
    except OSError:
        return (str(audio),)
    return (str(audio), status.st_size, status.st_mtime_ns)


def _add_clip(utterance: Utterance, job: PartJob, file: BinaryIO, part: dict[str, Any]) -> None:
    start = file.tell()
    try:
        length, crc32, clipped = _write_pcm(utterance, job.sampling_rate, file)
        row = clip_row(utterance, length / job.sampling_rate)
    except BadAudioError as error:
        file.seek(start)
        file.truncate()
        if job.on_error == "raise":
            raise CorpusError(
                f"{utterance.where}: {error}. Mend or drop the row, or pack with on_error='skip' or 'silence'."
            ) from error
        part["problems"].append(
            {"key": utterance.key, "where": utterance.where, "problem": str(error), "action": job.on_error}
        )
        if job.on_error == "skip":
            return
        length, crc32, clipped = _write_silence(job.sampling_rate, file)
        row = clip_row(utterance, length / job.sampling_rate, keep_spans=False)
    part["clips"].append({**row, "length": length, "crc32": crc32, "clipped": clipped})


def _write_pcm(utterance: Utterance, rate: int, file: BinaryIO) -> tuple[int, int, int]:
    length, crc32, clipped = 0, 0, 0
    for pcm, num_clipped in pcm_blocks(utterance.audio, rate, array_rate=utterance.sampling_rate):
        file.write(pcm.data)
        crc32 = zlib.crc32(pcm.data, crc32)
        length += len(pcm)
        clipped += num_clipped
    _pad(file)
    return length, crc32, clipped


def _write_silence(rate: int, file: BinaryIO) -> tuple[int, int, int]:
    silence = bytes(round(SILENCE_S * rate) * SAMPLE_BYTES)
    file.write(silence)
    _pad(file)
    return len(silence) // SAMPLE_BYTES, zlib.crc32(silence), 0


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % CLIP_ALIGNMENT))


def _metadata_json(utterance: Utterance) -> str:
    known = {name: getattr(utterance, name) for name in ("key", "text", "terms", "term_spans", "split")}
    known |= {"speaker": utterance.speaker, "language": utterance.language}
    try:
        return json.dumps([known, dict(utterance.extra)])
    except TypeError as error:
        raise CorpusError(f"{utterance.where}: a column holds what JSON cannot ({error}); make it text") from error


def clip_row(utterance: Utterance, duration: float, *, keep_spans: bool = True) -> dict[str, Any]:
    spans = _spans(utterance, duration) if keep_spans else [None] * len(utterance.terms)
    return {
        "key": utterance.key,
        "text": utterance.text,
        "terms": list(utterance.terms),
        "term_starts": [span and span[0] for span in spans],
        "term_ends": [span and span[1] for span in spans],
        "speaker": utterance.speaker,
        "language": utterance.language,
        "duration": duration,
        "split": utterance.split,
        "extra": dict(utterance.extra),
    }


def _spans(utterance: Utterance, duration: float) -> list[TermSpan | None]:
    """A span a term, None where unknown; a clip that says its one term and nothing else is that term, end to end."""
    if utterance.term_spans is not None:
        return [span and _inside(span, duration) for span in utterance.term_spans]
    if len(utterance.terms) == 1 and normalize_term(utterance.text) == normalize_term(utterance.terms[0]):
        return [(0.0, duration)]
    return [None] * len(utterance.terms)


def _inside(span: TermSpan, duration: float) -> TermSpan:
    start, end = span
    if start >= duration or end > duration + SPAN_SLACK_S:
        raise BadAudioError(f"a term from {start:g} s to {end:g} s does not fit into a clip of {duration:.2f} s")
    return start, min(end, duration)
