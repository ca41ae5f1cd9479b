"""What one run of packing or appending adds to a pack: parts, shards, tables and key index, under their final names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import soundfile
import soxr

from qwen_term_retrieval.corpora.corpus import CorpusReader, with_unique_keys
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.packs.format.key_index import KeyTable, keys_name, named_keys
from qwen_term_retrieval.packs.format.shards import HEADER_BYTES, ShardHeader, index_name, shard_name
from qwen_term_retrieval.packs.row_schema import table_name
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART, PartJob, make_part, read_part
from qwen_term_retrieval.packs.writing.progress import Source, packing_bar, utterances_of
from qwen_term_retrieval.packs.writing.sealing import ShardSealer, stamp_uuid
from qwen_term_retrieval.packs.writing.segments import recordings
from qwen_term_retrieval.packs.writing.tables import RowSummary, write_tables
from qwen_term_retrieval.storage.checksums import file_xxh64
from qwen_term_retrieval.workers import MapExecutor, results_in_order

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip", "silence")


@dataclass(frozen=True)
class PackSettings:
    """Settings that the bytes of an increment follow from."""

    sampling_rate: int
    shard_bytes: int
    on_error: str

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r}; it must be one of {', '.join(ON_ERROR)}")
        if self.sampling_rate < 1 or self.shard_bytes < 1:
            raise ValueError(f"sampling_rate={self.sampling_rate} and shard_bytes={self.shard_bytes} must be positive")


class Increment:
    """An increment in the making, in `<staging>/pack`.

    `number` and `first_shard` count on from what is in the pack, `beside` is the schema of its rows.
    """

    def __init__(
        self,
        staging: Path,
        settings: PackSettings,
        *,
        number: int = 0,
        first_shard: int = 0,
        beside: pa.Schema | None = None,
    ) -> None:
        self.folder = staging / "pack"
        self.summary = RowSummary(settings.sampling_rate, beside=beside)
        self.headers: list[ShardHeader] = []
        self._parts = staging / "parts"
        self._settings = settings
        self._number = number
        self._first_shard = first_shard

    def make(
        self,
        source: Source,
        pool: Executor | MapExecutor | None,
        *,
        taken: Sequence[KeyTable] = (),
        quiet: bool = False,
    ) -> None:
        """Decode the corpus and write shards, indexes, tables and the key index.

        Raises:
            CorpusError: nothing to pack, a bad row or bad audio, or a key that is among those `taken`.
        """
        self.folder.mkdir(exist_ok=True)
        sealer = ShardSealer(
            self._parts,
            self.folder,
            shard_bytes=self._settings.shard_bytes,
            sampling_rate=self._settings.sampling_rate,
            first_number=self._first_shard,
        )
        with sealer:
            self.decode(source, pool, taken=taken, sealer=sealer, quiet=quiet)
            headers = sealer.close()
        self.headers = stamp_uuid(self.folder, headers, self.summary.uuid, self._first_shard)
        write_tables(self._parts, self.folder, self.headers, self.summary, self._number, self._first_shard)

    def decode(
        self,
        source: Source,
        pool: Executor | MapExecutor | None,
        *,
        taken: Sequence[KeyTable] = (),
        sealer: ShardSealer | None = None,
        quiet: bool = False,
    ) -> None:
        """Make the parts that are not there yet; count all of them in, and lay them into shards as they come."""
        self._parts.mkdir(exist_ok=True)
        utterances = utterances_of(source)
        jobs = _jobs(with_unique_keys(utterances), self._parts, self._settings, taken)
        with packing_bar(utterances, quiet=quiet) as progress:
            for result in results_in_order(make_part, jobs, pool):
                for problem in result.problems:
                    logger.warning("%s: %s (%s)", problem["where"], problem["problem"], problem["action"])
                part = read_part(self._parts, result.number)
                self.summary.add(part)
                if sealer is not None:
                    sealer.add(result.number, part)
                progress.add(result.num_clips, result.num_samples / self._settings.sampling_rate)
        if not self.summary.splits:
            name = utterances.name if isinstance(utterances, CorpusReader) else "the corpus"
            raise CorpusError(f"{name}: no utterance to pack")

    @property
    def names(self) -> list[str]:
        """All its files."""
        numbers = range(self._first_shard, self._first_shard + len(self.headers))
        return [*(shard_name(number) for number in numbers), *self._checksummed]

    @property
    def _checksummed(self) -> list[str]:
        """The files whose checksums `pack.json` holds beside the entry of the increment."""
        numbers = range(self._first_shard, self._first_shard + len(self.headers))
        indexes = [index_name(number) for number in numbers]
        return [*indexes, *(table_name(split, self._number) for split in self.summary.splits), keys_name(self._number)]

    def drop_other_files(self, keep: Sequence[str] = ()) -> None:
        """Drop what an interrupted run with another corpus may have left beside the increment's files."""
        for path in self.folder.iterdir():
            if path.name not in {*self.names, *keep}:
                path.unlink()

    def files(self) -> dict[str, dict[str, Any]]:
        """Bytes and checksum of the files that are not shards, as `pack.json` has them."""
        paths = [self.folder / name for name in self._checksummed]
        return {path.name: {"bytes": path.stat().st_size, "xxh64": file_xxh64(path)} for path in paths}

    def entry(self) -> dict[str, Any]:
        """What `pack.json` says of the increment."""
        splits = self.summary.splits
        return {
            "uuid": str(self.summary.uuid),
            "splits": {
                split: {"file": table_name(split, self._number), **vars(totals)} for split, totals in splits.items()
            },
            "keys": keys_name(self._number),
            "shards": [
                {
                    "file": shard_name(number),
                    "uid": header.uid,
                    "bytes": HEADER_BYTES + header.num_bytes,
                    "xxh64": f"{header.xxh64:016x}",
                    "clips": header.num_clips,
                }
                for number, header in enumerate(self.headers, self._first_shard)
            ],
            "num_clipped_samples": self.summary.num_clipped_samples,
            "problems": self.summary.problems,
            "made": {
                "shard_bytes": self._settings.shard_bytes,
                "on_error": self._settings.on_error,
                "qwen_term_retrieval": version("qwen_term_retrieval"),
                "libsndfile": soundfile.__libsndfile_version__,
                "soxr": soxr.__version__,
            },
        }


def _jobs(
    utterances: Iterator[Utterance], parts: Path, settings: PackSettings, taken: Sequence[KeyTable]
) -> Iterator[PartJob]:
    """A job for every few dozen utterances; the segments of one recording stay together."""
    number, batch = 0, list[Utterance]()
    for run in recordings(utterances):
        batch += run
        if len(batch) >= UTTERANCES_PER_PART:
            _refuse_taken(batch, taken)
            yield PartJob(number, parts, batch, settings.sampling_rate, settings.on_error)
            number, batch = number + 1, []
    if batch:
        _refuse_taken(batch, taken)
        yield PartJob(number, parts, batch, settings.sampling_rate, settings.on_error)


def _refuse_taken(batch: Sequence[Utterance], taken: Sequence[KeyTable]) -> None:
    keys = [utterance.key for utterance in batch] if taken else []
    known = [key for table in taken for key in table.known(keys)]
    if known:
        first = next(utterance for utterance in batch if utterance.key in known)
        raise CorpusError(
            f"{first.where}: the pack has a clip of this key already, and so for {len(known)} of the rows next to it "
            f"({named_keys(known)}). Was this corpus appended before? If not, give its rows keys of their own"
        )
