"""More clips into a pack that is there, as an increment of its own: no file of the pack is written again.

The increment is made whole in `<pack>.incomplete/` first. Then its files are renamed into the pack, where nobody looks
at them, and last a new `pack.json` names them: a reader sees the pack of before or the pack of after. Notes in the
staging folder say which files are on their way, so that a run after a kill can rename them back and do it again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import Executor
from pathlib import Path

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.pack_json import write_pack_json
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import SHARD_BYTES, PackSummary
from qwen_term_retrieval.packs.row_schema import CARD, split_totals
from qwen_term_retrieval.packs.writing.increment import Increment, PackSettings
from qwen_term_retrieval.packs.writing.progress import Source
from qwen_term_retrieval.packs.writing.tables import dataset_card, write_card
from qwen_term_retrieval.storage.atomic import atomic_file, sync_folder
from qwen_term_retrieval.storage.staging import staging_of
from qwen_term_retrieval.workers import MapExecutor, worker_pool

logger = logging.getLogger(__name__)

_NOTES = "adopting.json"


def append_corpus(
    source: Source,
    pack: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int | None = None,
    executor: Executor | MapExecutor | None = None,
    on_error: str = "raise",
    quiet: bool = False,
) -> PackSummary:
    """Append a corpus to the pack in the folder `pack`; see `pack_corpus` for the arguments.

    Killed and run again, it ends in the pack that an uninterrupted run makes. Those who have the pack open read on
    undisturbed. New rows come after the old ones of their split; columns that only one side has are null on the other.

    Returns:
        What was added.

    Raises:
        CorpusError: bad row or audio, a key that the pack has already, or a column of another type than in the pack.
        PackError: `pack` is no pack or damaged, or another process writes to it.
    """
    folder = Path(pack).absolute()
    started = time.perf_counter()
    opened = Pack.open(folder)
    settings = PackSettings(opened.sampling_rate, shard_bytes, on_error)
    with staging_of(folder) as staging, worker_pool(executor, num_workers) as pool:
        # Once more, now that nobody else writes.
        opened = Pack.open(folder)
        finished = _undo_renames(staging, opened)
        if finished:
            increment = _finished_increment(staging, opened, settings, source, pool, quiet)
            return PackSummary.of(increment, folder, started)
        increment = Increment(
            staging, settings, number=len(opened.increments), first_shard=len(opened.shards), beside=opened.schema
        )
        increment.make(source, pool, taken=opened.key_tables, quiet=quiet)
        increment.drop_other_files()
        _move_into_pack(increment, staging, opened)
    return PackSummary.of(increment, folder, started)


def _undo_renames(staging: Path, pack: Pack) -> bool:
    """Undo the renames of an interrupted append; True where it had finished but for its staging folder."""
    notes = staging / _NOTES
    if not notes.is_file():
        return False
    adopting = json.loads(notes.read_bytes())
    if any(increment["uuid"] == adopting["uuid"] for increment in pack.increments):
        return True
    for name in adopting["names"]:
        if (pack.folder / name).exists():
            (pack.folder / name).rename(staging / "pack" / name)
    notes.unlink()
    return False


def _finished_increment(
    staging: Path, pack: Pack, settings: PackSettings, source: Source, pool: Executor | MapExecutor | None, quiet: bool
) -> Increment:
    """The last increment of the pack, if `source` is the corpus that it was made of."""
    increment = Increment(staging, settings)
    increment.decode(source, pool, taken=pack.key_tables[:-1], quiet=quiet)
    if str(increment.summary.uuid) != pack.increments[-1]["uuid"]:
        shutil.rmtree(staging)
        raise PackError(
            f"{pack.folder}: the last append, of another corpus, had finished and was killed while it cleaned up. "
            "That is done now: run again"
        )
    increment.headers = pack.shard_headers(len(pack.increments) - 1)
    return increment


def _move_into_pack(increment: Increment, staging: Path, pack: Pack) -> None:
    names = increment.names
    in_the_way = [name for name in names if (pack.folder / name).exists()]
    if in_the_way:
        raise PackError(
            f"{pack.folder} holds {', '.join(in_the_way)}, which its pack.json does not name: an append was killed and "
            f"its folder {staging.name} deleted. Delete these files and run again"
        )
    entry, files = increment.entry(), increment.files()
    with atomic_file(staging / _NOTES) as file:
        file.write(json.dumps({"uuid": entry["uuid"], "names": names}).encode())
    for name in names:
        (increment.folder / name).rename(pack.folder / name)
    sync_folder(pack.folder)
    _update_card(pack, [*pack.increments, entry])
    write_pack_json(pack.folder, pack.sampling_rate, [*pack.increments, entry], {**pack.content["files"], **files})


def _update_card(pack: Pack, increments: list[dict]) -> None:
    """Bring the card up to date, unless somebody has made it theirs."""
    card = pack.folder / CARD
    if card.is_file() and card.read_text(encoding="utf-8") != dataset_card(pack.totals):
        logger.warning("%s was edited and stays as it is; its numbers of clips are those of before", card)
        return
    write_card(pack.folder, split_totals(increments))
