"""A corpus into a pack: decode in parallel, lay clips into shards, write the tables, publish the whole at once.

Everything is made in `<out>.incomplete/` and renamed to `<out>` as the last step, so a pack is whole or not there.
1. Parts: workers decode a few dozen utterances each (`parts.py`). A killed run keeps the parts it has.
2. Shards (`sealing.py`): clips are laid one after another into files of at most `shard_bytes`; parts go as their shards
   are sealed, so the disk holds the audio about once.
3. Tables (`tables.py`), the dataset card, and last `pack.json` with the checksum of every file.

The bytes of a pack follow from the corpus and the settings alone: not from the number of workers, from interruptions or
from the clock. Memory holds a block of a few MB a worker, one part's rows and one shard's index.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
import soxr
from filelock import FileLock, Timeout
from tqdm import tqdm

from qwen_term_retrieval.audio.atomic import sync_folder
from qwen_term_retrieval.audio.corpus import read_corpus, with_unique_keys
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.audio.keys import keys_name
from qwen_term_retrieval.audio.pack_json import PACK_JSON, file_xxh64, write_pack_json
from qwen_term_retrieval.audio.parts import UTTERANCES_PER_PART, PartJob, PartResult, make_part
from qwen_term_retrieval.audio.sealing import index_name, seal_shards, shard_name
from qwen_term_retrieval.audio.shards import HEADER_BYTES, PackError, ShardHeader
from qwen_term_retrieval.audio.tables import Survey, survey_parts, table_name, write_card, write_tables
from qwen_term_retrieval.audio.utterance import CorpusError, Utterance

logger = logging.getLogger(__name__)

SHARD_BYTES = 2 << 30
_ON_ERROR = ("raise", "skip", "silence")


@dataclass(frozen=True)
class PackSummary:
    """What packing made. `problems` lists each utterance that was skipped or silenced, and why."""

    folder: Path
    num_clips: int
    num_shards: int
    duration_s: float
    num_bytes: int
    num_clipped_samples: int
    problems: list[dict[str, str]]
    seconds: float

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.num_clips} clips, {self.duration_s / 3600:.2f} h in {self.num_shards} shards "
            f"({self.num_bytes / 1e6:.1f} MB), {self.seconds:.1f} s"
        )
        if self.num_clipped_samples:
            text += f"; {self.num_clipped_samples} samples were out of range and clipped"
        return text + (f"; {len(self.problems)} utterances were skipped or silenced" if self.problems else "")


def pack_corpus(
    source: str | Path | Iterable[Utterance],
    out: str | Path,
    *,
    sampling_rate: int = SAMPLING_RATE,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int | None = None,
    executor: Executor | None = None,
    on_error: str = "raise",
    overwrite: bool = False,
    quiet: bool = False,
) -> PackSummary:
    """Pack a corpus (what `read_corpus` reads, or utterances) into the folder `out`.

    Run again after a crash or kill, it goes on where it was, to the same bytes.

    Args:
        sampling_rate: of the packed PCM, in Hz.
        shard_bytes: upper bound of a shard file; a longer clip gets a shard of its own.
        num_workers: worker processes; None: one a core, 1: work in this process.
        executor: any `concurrent.futures.Executor` instead, whose workers see the folder of `out`.
        on_error: what to do with bad audio: "raise", "skip" the utterance, or pack one second of "silence".
        overwrite: replace the pack that is at `out`.
        quiet: no progress bar.

    Raises:
        CorpusError: bad row or, with `on_error="raise"`, bad audio: with file, row, key and remedy.
        FileExistsError: `out` exists.
        PackError: another process packs into `out`, or a worker died.
    """
    if on_error not in _ON_ERROR:
        raise ValueError(f"on_error={on_error!r}; it must be one of {', '.join(_ON_ERROR)}")
    if sampling_rate < 1 or shard_bytes < 1:
        raise ValueError(f"sampling_rate={sampling_rate} and shard_bytes={shard_bytes} must be positive")
    out = Path(out).absolute()
    _check_free(out, overwrite)
    started = time.perf_counter()
    utterances = read_corpus(source) if isinstance(source, str | Path) else iter(source)
    staging = out.with_name(f"{out.name}.incomplete")
    parts, pack = staging / "parts", staging / "pack"
    with _locked(staging, out):
        parts.mkdir(exist_ok=True)
        pack.mkdir(exist_ok=True)
        jobs = _jobs(with_unique_keys(utterances), parts, sampling_rate, on_error)
        with _workers(executor, num_workers) as pool:
            num_parts = _make_parts(jobs, pool, quiet)
        survey = survey_parts(parts, num_parts, sampling_rate)
        if not survey.splits:
            raise CorpusError(f"{source if isinstance(source, str | Path) else 'the corpus'}: no utterance to pack")
        headers = seal_shards(
            parts,
            num_parts,
            pack,
            shard_bytes=shard_bytes,
            sampling_rate=sampling_rate,
            pack_uuid=survey.pack_uuid,
        )
        write_tables(parts, num_parts, pack, headers, survey, sampling_rate)
        write_card(pack, survey)
        _finish(pack, headers, survey, {"shard_bytes": shard_bytes, "on_error": on_error})
        _publish(pack, out)
        shutil.rmtree(staging)
    return PackSummary(
        folder=out,
        num_clips=sum(header.num_clips for header in headers),
        num_shards=len(headers),
        duration_s=sum(totals.duration_s for totals in survey.splits.values()),
        num_bytes=sum(header.num_bytes + HEADER_BYTES for header in headers),
        num_clipped_samples=survey.num_clipped_samples,
        problems=survey.problems,
        seconds=time.perf_counter() - started,
    )


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / PACK_JSON).is_file():
        raise FileExistsError(f"{out} exists and is not a pack; give another folder")
    if not overwrite:
        raise FileExistsError(f"{out} holds a pack already; give another folder, or overwrite=True (--overwrite)")


@contextmanager
def _locked(staging: Path, out: Path) -> Iterator[None]:
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staging / "lock", timeout=0):
            yield
    except Timeout as error:
        raise PackError(f"another process is packing into {out}; wait for it, or give another folder") from error


def _jobs(utterances: Iterator[Utterance], parts: Path, sampling_rate: int, on_error: str) -> Iterator[PartJob]:
    number = 0
    while batch := list(islice(utterances, UTTERANCES_PER_PART)):
        yield PartJob(number, parts, batch, sampling_rate, on_error)
        number += 1


@contextmanager
def _workers(executor: Executor | None, num_workers: int | None) -> Iterator[Executor | None]:
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if executor is not None or num_workers <= 1:
        yield executor
        return
    # Fork needs no `if __name__ == "__main__"` in the caller's script; the workers touch nothing that has threads.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_die_with_parent, initargs=(os.getpid(),)) as pool:
        yield pool


def _die_with_parent(parent: int) -> None:
    """A pool's workers outlive a parent that was killed with SIGKILL, waiting for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_parts(jobs: Iterator[PartJob], pool: Executor | None, quiet: bool) -> int:
    num_parts, num_samples = 0, 0
    with tqdm(desc="packing", unit=" clips", disable=True if quiet else None) as progress:
        for job, result in _results(jobs, pool):
            for problem in result.problems:
                logger.warning("%s: %s (%s)", problem["where"], problem["problem"], problem["action"])
            num_parts += 1
            num_samples += result.num_samples
            hours = num_samples / job.sampling_rate / 3600
            rate = hours / max(progress.format_dict["elapsed"], 1e-3)
            progress.set_postfix_str(f"{hours:.2f} h of audio, {rate:.3f} h/s", refresh=False)
            progress.update(result.num_clips)
    return num_parts


def _results(jobs: Iterator[PartJob], pool: Executor | None) -> Iterator[tuple[PartJob, PartResult]]:
    """Results in order, with a bounded number of jobs under way."""
    if pool is None:
        yield from ((job, make_part(job)) for job in jobs)
        return
    window = 4 * (os.cpu_count() or 1)
    pending: deque[tuple[PartJob, Future[PartResult]]] = deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(make_part, job)))
            if len(pending) >= window:
                yield pending[0][0], pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][0], pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool as error:
        raise PackError("a packing worker died (out of memory?); run again to go on, with fewer workers") from error
    finally:
        for _, future in pending:
            future.cancel()


def _finish(pack: Path, headers: list[ShardHeader], survey: Survey, settings: dict[str, Any]) -> None:
    """Write `pack.json` and drop what an interrupted run with another corpus may have left beside it."""
    tables = {split: table_name(split, 0) for split in survey.splits}
    indexes = [index_name(number) for number in range(len(headers))]
    shards = [shard_name(number) for number in range(len(headers))]
    vouched_for = (*indexes, *tables.values(), keys_name(0))
    for path in pack.iterdir():
        if path.name not in {*vouched_for, *shards, "README.md"}:
            path.unlink()
    increment = {
        "uuid": str(survey.pack_uuid),
        "splits": {split: {"file": tables[split], **vars(totals)} for split, totals in survey.splits.items()},
        "keys": keys_name(0),
        "shards": [
            {
                "file": name,
                "uid": header.uid,
                "bytes": HEADER_BYTES + header.num_bytes,
                "xxh64": f"{header.xxh64:016x}",
                "clips": header.num_clips,
            }
            for name, header in zip(shards, headers, strict=True)
        ],
        "num_clipped_samples": survey.num_clipped_samples,
        "problems": survey.problems,
        "made": {
            **settings,
            "qwen_term_retrieval": version("qwen_term_retrieval"),
            "libsndfile": soundfile.__libsndfile_version__,
            "soxr": soxr.__version__,
        },
    }
    files = {name: {"bytes": (pack / name).stat().st_size, "xxh64": file_xxh64(pack / name)} for name in vouched_for}
    write_pack_json(pack, headers[0].sampling_rate, [increment], files)


def _publish(pack: Path, out: Path) -> None:
    replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    if out.exists():
        out.rename(replaced)
    pack.rename(out)
    sync_folder(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
