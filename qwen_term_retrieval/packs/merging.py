"""Several packs into one: their files are linked or copied under new numbers, and a new `pack.json` names them all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.key_index import keys_name, named_keys
from qwen_term_retrieval.packs.format.pack_json import PACK_JSON, write_pack_json
from qwen_term_retrieval.packs.format.shards import index_name, index_of, shard_name
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.row_schema import split_totals, table_name, united_schema
from qwen_term_retrieval.packs.writing.tables import write_card
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.staging import check_free, link_or_copy, publish, staging_of


def merge_packs(packs: Sequence[str | Path], out: str | Path, *, overwrite: bool = False, quiet: bool = False) -> Pack:
    """Merge packs into the folder `out`; the packs themselves stay as they are.

    Shards and tables become hard links where `out` lies on the same file system, and are copied elsewhere; neither PCM
    nor tables are written anew. Rows follow the order of `packs`; splits of one name are joined; columns that a pack
    lacks are null in its rows.

    Args:
        overwrite: replace the pack that is at `out`.
        quiet: no progress bar.

    Raises:
        PackError: packs of different sampling rates, a key that two packs have, columns of types that do not go
            together, or a damaged pack.
        FileExistsError: `out` exists.
    """
    if not packs:
        raise ValueError("no pack to merge")
    out = Path(out).absolute()
    check_free(out, "a pack", PACK_JSON, overwrite=overwrite)
    opened = [Pack.open(folder) for folder in packs]
    _check(opened)
    with staging_of(out) as staging:
        folder = staging / "pack"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        increments, files, moves = _renumbered(opened)
        total = sum(source.stat().st_size for source, _ in moves)
        with Progress(total=total, unit="B", unit_scale=True, desc="merging", shown=not quiet) as progress:
            for source, name in moves:
                link_or_copy(source, folder / name)
                progress.update(source.stat().st_size)
        write_card(folder, split_totals(increments))
        write_pack_json(folder, opened[0].sampling_rate, increments, files)
        publish(folder, out)
    return Pack.open(out)


def _check(packs: Sequence[Pack]) -> None:
    rates = {pack.sampling_rate for pack in packs}
    if len(rates) > 1:
        each = ", ".join(f"{pack.folder} {pack.sampling_rate} Hz" for pack in packs)
        raise PackError(f"packs of one sampling rate can be merged, not {each}; pack one of them again")
    try:
        united_schema([pack.schema for pack in packs], packs[0].sampling_rate)
    except ValueError as error:
        raise PackError(f"{', '.join(str(pack.folder) for pack in packs)}: {error}") from error
    for first, second in combinations(packs, 2):
        shared = [key for mine in first.key_tables for theirs in second.key_tables for key in mine.shared_with(theirs)]
        if shared:
            raise PackError(
                f"{first.folder} and {second.folder} share {len(shared)} keys: {named_keys(sorted(shared))}; keys must "
                "be unique: pack one of them again without these clips, or with a column `key` that differs"
            )


def _renumbered(packs: Sequence[Pack]) -> tuple[list[dict[str, Any]], dict[str, Any], list[tuple[Path, str]]]:
    """Entries of all increments and checksums of all files under new names, and which file becomes which."""
    increments: list[dict[str, Any]] = []
    files: dict[str, Any] = {}
    moves: list[tuple[Path, str]] = []
    first_shard = 0
    for pack in packs:
        for entry in pack.increments:
            renamed = dict(_new_names(entry, len(increments), first_shard))
            moves += [(pack.folder / old, new) for old, new in renamed.items()]
            files |= {new: pack.content["files"][old] for old, new in renamed.items() if old in pack.content["files"]}
            first_shard += len(entry["shards"])
            splits = {split: {**each, "file": renamed[each["file"]]} for split, each in entry["splits"].items()}
            shards = [{**shard, "file": renamed[shard["file"]]} for shard in entry["shards"]]
            increments.append({**entry, "splits": splits, "keys": renamed[entry["keys"]], "shards": shards})
    return increments, files, moves


def _new_names(entry: dict[str, Any], number: int, first_shard: int) -> Iterator[tuple[str, str]]:
    for shard_number, shard in enumerate(entry["shards"], first_shard):
        yield shard["file"], shard_name(shard_number)
        yield index_of(Path(shard["file"])).name, index_name(shard_number)
    for split, each in entry["splits"].items():
        yield each["file"], table_name(split, number)
    yield entry["keys"], keys_name(number)
