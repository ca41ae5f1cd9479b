"""A part: the decoded audio of a few dozen consecutive utterances, the unit of parallel work and of resuming.

A worker writes `part_N.pcm`, then `part_N.arrow`, a row a clip, with a signature of all that went in (rows, file sizes
and times, settings): a part that is there with the right signature is not made again. Nothing waits for the disk here.
Instead a run that meets parts of an earlier one checks their checksums, and makes anew what a power cut has spoilt.
Parts do not shape the pack: clips are laid into shards one by one, whatever parts they came in.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import ipc

from qwen_term_retrieval.audio.sources import FileSlice
from qwen_term_retrieval.corpora.utterance import TermSpan, Utterance
from qwen_term_retrieval.errors import BadAudioError, CorpusError, PackError
from qwen_term_retrieval.packs.format.shards import CLIP_ALIGNMENT, FORMAT_VERSION, SAMPLE_BYTES, aligned
from qwen_term_retrieval.packs.row_schema import ROW_COLUMNS
from qwen_term_retrieval.packs.writing.segments import Blocks, clips, recordings
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.text.spellings import normalize_term

UTTERANCES_PER_PART = 64
SPAN_SLACK_S = 0.05
SILENCE_S = 1.0
EXTRA = "extra:"
_DIGEST_BYTES = 8
# `clipped` counts samples; `digest` is of all that is known of a clip. A corpus' own columns follow, as `extra:<name>`.
_COLUMNS = ROW_COLUMNS | {
    "split": pa.string(),
    "length": pa.int64(),
    "crc32": pa.uint32(),
    "clipped": pa.int64(),
    "digest": pa.uint64(),
}
_to_json = json.JSONEncoder(default=repr).encode


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


@dataclass(frozen=True)
class Part:
    """A finished part; `rows` has the columns above, a row a clip."""

    signature: str
    rows: pa.RecordBatch
    problems: list[dict[str, str]]

    def array(self, name: str) -> np.ndarray:
        """A column of numbers, (num_clips,)."""
        return self.rows.column(name).to_numpy()


def pcm_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.pcm"


def rows_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.arrow"


def read_part(folder: Path, number: int) -> Part:
    """The rows of a part.

    Raises:
        PackError: they are damaged.
    """
    content = rows_path(folder, number).read_bytes()
    if xxhash.xxh3_64_digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        raise PackError(f"{rows_path(folder, number)} is damaged; delete it and run again")
    rows = ipc.open_file(pa.py_buffer(content).slice(_DIGEST_BYTES)).get_batch(0)
    metadata = rows.schema.metadata
    return Part(metadata[b"signature"].decode(), rows, json.loads(metadata[b"problems"]))


def make_part(job: PartJob) -> PartResult:
    """Decode the utterances of a job into its part, unless the same part is there already.

    Raises:
        CorpusError: at the first bad utterance, where `on_error` is "raise".
    """
    descriptions = [_description(utterance) for utterance in job.utterances]
    signature = _signature(job, descriptions)
    part = _made_before(job, signature)
    if part is None:
        part = _decode(job, signature, descriptions)
    return PartResult(job.number, part.rows.num_rows, int(part.array("length").sum()), part.problems)


def _made_before(job: PartJob, signature: str) -> Part | None:
    """The part as an interrupted run left it, if it is whole; its PCM may be in a shard already."""
    if not rows_path(job.folder, job.number).is_file():
        return None
    try:
        part = read_part(job.folder, job.number)
    except PackError:
        return None
    pcm = pcm_path(job.folder, job.number)
    whole = part.signature == signature and (not pcm.exists() or _is_whole(pcm, part))
    return part if whole else None


def _is_whole(pcm: Path, part: Part) -> bool:
    lengths = part.array("length")
    ends = np.cumsum(aligned(lengths * SAMPLE_BYTES))
    if pcm.stat().st_size != (ends[-1] if len(ends) else 0):
        return False
    with pcm.open("rb") as file:
        for length, end, crc32 in zip(lengths.tolist(), ends.tolist(), part.array("crc32").tolist(), strict=True):
            clip = file.read(end - file.tell())
            num_bytes = length * SAMPLE_BYTES
            if zlib.crc32(memoryview(clip)[:num_bytes]) != crc32 or any(clip[num_bytes:]):
                return False
    return True


def _description(utterance: Utterance) -> str:
    """All that the corpus says of a clip, its audio apart."""
    known = [getattr(utterance, name) for name in ("key", "text", "terms", "term_spans", "speaker", "language")]
    try:
        return _to_json([*known, utterance.split, utterance.start, utterance.end, dict(utterance.extra)])
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{utterance.where}: a column holds what a table cannot ({error}); make it text") from error


def _signature(job: PartJob, descriptions: Sequence[str]) -> str:
    digest = xxhash.xxh3_128(_to_json([FORMAT_VERSION, job.sampling_rate, job.on_error]).encode())
    for utterance, description in zip(job.utterances, descriptions, strict=True):
        digest.update(repr((_audio_identity(utterance), utterance.sampling_rate, utterance.channel)).encode())
        digest.update(description.encode())
    return digest.hexdigest()


def _audio_identity(utterance: Utterance) -> tuple[Any, ...]:
    audio = utterance.audio
    if isinstance(audio, bytes):
        return (xxhash.xxh3_128_hexdigest(audio),)
    if isinstance(audio, np.ndarray):
        return (str(audio.dtype), audio.shape, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(audio).data))
    try:
        status = os.stat(audio.path if isinstance(audio, FileSlice) else audio)  # noqa: PTH116 (a Path costs more)
    except (OSError, ValueError):
        return (str(audio),)  # a URL, a file that is not there, or what no file can be called
    return (str(audio), status.st_size, status.st_mtime_ns)


@dataclass
class _Rows:
    """The rows of a part as they come, and the utterances they are of."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    utterances: list[Utterance] = field(default_factory=list)

    def add(self, utterance: Utterance, row: dict[str, Any]) -> None:
        for name, values in self.columns.items():
            values.append(row[name])
        self.utterances.append(utterance)

    def batch(self, metadata: dict[str, str]) -> pa.RecordBatch:
        arrays = {name: self._array(name, values, _COLUMNS[name]) for name, values in self.columns.items()}
        extras = [utterance.extra for utterance in self.utterances]
        for name in dict.fromkeys(name for extra in extras for name in extra):
            arrays[f"{EXTRA}{name}"] = self._array(name, [extra.get(name) for extra in extras], None)
        return pa.record_batch(list(arrays.values()), list(arrays)).replace_schema_metadata(metadata)

    def _array(self, name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            for value, utterance in zip(values, self.utterances, strict=True):
                _check_cell(name, value, kind, utterance.where)
            raise CorpusError(f"column {name!r} mixes types ({error}); give all its rows one type") from error


def _check_cell(name: str, value: Any, kind: pa.DataType | None, source: str) -> None:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise CorpusError(f"{source}: column {name!r} holds what a table cannot ({error}); make it text") from error


def _decode(job: PartJob, signature: str, descriptions: Sequence[str]) -> Part:
    rows, problems = _Rows(), []
    described = iter(descriptions)
    pcm = pcm_path(job.folder, job.number)
    scratch = pcm.with_suffix(f".{os.getpid()}.recording")
    with atomic_file(pcm, durable=False) as file:
        for run in recordings(job.utterances):
            for utterance, blocks in clips(run, job.sampling_rate, scratch):
                problem = _add_clip(utterance, blocks, next(described), job, file, rows)
                if problem is not None:
                    problems.append(problem)
    batch = rows.batch({"signature": signature, "problems": json.dumps(problems)})
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    with atomic_file(rows_path(job.folder, job.number), durable=False) as file:
        file.write(xxhash.xxh3_64_digest(content))
        file.write(content)
    return Part(signature, batch, problems)


def _add_clip(
    utterance: Utterance, blocks: Blocks, description: str, job: PartJob, file: BinaryIO, rows: _Rows
) -> dict[str, str] | None:
    """Write a clip and its row; returns the problem met, if any."""
    start = file.tell()
    try:
        length, crc32, clipped = _write_pcm(blocks, file)
        row, problem = clip_row(utterance, length / job.sampling_rate), None
    except BadAudioError as error:
        if job.on_error == "raise":
            raise CorpusError(
                f"{utterance.where}: {error}. Mend or drop the row, or pack with on_error='skip' or on_error='silence'."
            ) from error
        problem = {"key": utterance.key, "where": utterance.where, "problem": str(error), "action": job.on_error}
        file.seek(start)
        file.truncate()
        if job.on_error == "skip":
            return problem
        silence = np.zeros(round(SILENCE_S * job.sampling_rate), np.int16)
        length, crc32, clipped = _write_pcm(iter([(silence, 0)]), file)
        row = clip_row(utterance, length / job.sampling_rate, keep_spans=False)
    file.write(bytes(-(length * SAMPLE_BYTES) % CLIP_ALIGNMENT))
    digest = xxhash.xxh3_64_intdigest(f"{description}{length} {crc32} {problem is None}".encode())
    rows.add(utterance, {**row, "length": length, "crc32": crc32, "clipped": clipped, "digest": digest})
    return problem


def _write_pcm(blocks: Blocks, file: BinaryIO) -> tuple[int, int, int]:
    length, crc32, clipped = 0, 0, 0
    for pcm, num_clipped in blocks:
        file.write(pcm.data)
        crc32 = zlib.crc32(pcm.data, crc32)
        length += len(pcm)
        clipped += num_clipped
    return length, crc32, clipped


def clip_row(utterance: Utterance, duration: float, *, keep_spans: bool = True) -> dict[str, Any]:
    """What the table says of a clip of `duration` seconds.

    Raises:
        BadAudioError: a term's span does not fit into it.
    """
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
    }


def _spans(utterance: Utterance, duration: float) -> list[TermSpan | None]:
    """A span a term, None where unknown; a clip that says its one term and nothing else is that term, end to end."""
    if utterance.term_spans is not None:
        return [span and _inside(span, duration) for span in utterance.term_spans]
    if len(utterance.terms) == 1 and _sound_alike(utterance.text, utterance.terms[0]):
        return [(0.0, duration)]
    return [None] * len(utterance.terms)


def _sound_alike(text: str, term: str) -> bool:
    # To spell a number out takes as long as to write the clip.
    return text == term or normalize_term(text) == normalize_term(term)


def _inside(span: TermSpan, duration: float) -> TermSpan:
    start, end = span
    if start >= duration or end > duration + SPAN_SLACK_S:
        raise BadAudioError(f"a term from {start:g} s to {end:g} s does not fit into a clip of {duration:.2f} s")
    return start, min(end, duration)
