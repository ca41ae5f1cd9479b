"""A corpus into a pack: decode in parallel, lay clips into shards, write the tables, publish the whole at once.

Everything is made in `<out>.incomplete/` and renamed to `<out>` as the last step, so a pack is whole or not there. The
steps are in `writing/`: a killed run keeps the parts it has, and the disk holds the audio about once.

The bytes of a pack follow from the corpus and the settings alone: not from the number of workers, from interruptions or
from the clock. Memory holds a block of a few MB a worker, one part's rows, one shard's index and, for the key index,
some 100 bytes a clip.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.packs.format.pack_json import PACK_JSON, write_pack_json
from qwen_term_retrieval.packs.format.shards import HEADER_BYTES
from qwen_term_retrieval.packs.row_schema import CARD
from qwen_term_retrieval.packs.writing.increment import Increment, PackSettings
from qwen_term_retrieval.packs.writing.progress import Source
from qwen_term_retrieval.packs.writing.tables import write_card
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of
from qwen_term_retrieval.workers import MapExecutor, worker_pool

SHARD_BYTES = 2 << 30


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

    @classmethod
    def of(cls, increment: Increment, folder: Path, started: float) -> PackSummary:
        """Sum up what packing added to `folder`; `started` is what `time.perf_counter` said then."""
        summary, headers = increment.summary, increment.headers
        return cls(
            folder=folder,
            num_clips=sum(header.num_clips for header in headers),
            num_shards=len(headers),
            duration_s=sum(totals.duration_s for totals in summary.splits.values()),
            num_bytes=sum(header.num_bytes + HEADER_BYTES for header in headers),
            num_clipped_samples=summary.num_clipped_samples,
            problems=summary.problems,
            seconds=time.perf_counter() - started,
        )

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.num_clips} clips, {self.duration_s / 3600:.2f} h in {self.num_shards} shards "
            f"({self.num_bytes / 1e6:.1f} MB), {self.seconds:.1f} s"
        )
        if self.num_clipped_samples:
            text += f"; {self.num_clipped_samples} samples were out of range and clipped"
        return text + (f"; {len(self.problems)} utterances were skipped or silenced" if self.problems else "")


def pack_corpus(
    source: Source,
    out: str | Path,
    *,
    sampling_rate: int = SAMPLING_RATE,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int | None = None,
    executor: Executor | MapExecutor | None = None,
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
        executor: any `concurrent.futures.Executor` instead, or a `MapExecutor`; its workers see the folder of `out`.
        on_error: what to do with bad audio: "raise", "skip" the utterance, or pack one second of "silence".
        overwrite: replace the pack that is at `out`.
        quiet: no progress bar.

    Raises:
        CorpusError: bad row or, with `on_error="raise"`, bad audio: with file, row, key and remedy.
        FileExistsError: `out` exists.
        PackError: another process packs into `out`, a worker died, or the disk is full.
    """
    settings = PackSettings(sampling_rate, shard_bytes, on_error)
    out = Path(out).absolute()
    check_free(out, "a pack", PACK_JSON, overwrite=overwrite)
    started = time.perf_counter()
    with staging_of(out) as staging:
        increment = Increment(staging, settings)
        with worker_pool(executor, num_workers) as pool:
            increment.make(source, pool, quiet=quiet)
        write_card(increment.folder, increment.summary.splits)
        increment.drop_other_files(keep=(CARD,))
        write_pack_json(increment.folder, sampling_rate, [increment.entry()], increment.files())
        publish(increment.folder, out)
    return PackSummary.of(increment, out, started)
