"""Whether a file still is what it was when its checksum was taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from qwen_term_retrieval.progress import Progress


def file_xxh64(path: Path, *, skip: int = 0) -> str:
    """Hex xxh64 of a file from byte `skip` on."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def damages_found(
    folder: Path,
    files: Mapping[str, Mapping[str, Any]],
    shards: Sequence[dict[str, Any]],
    shard_damage: Callable[[dict[str, Any]], Iterable[str]],
    *,
    quiet: bool,
) -> list[str]:
    """One line per damage to the files of a folder, by their `xxh64`, and to its shards, by `shard_damage`.

    Each file and shard tells its `bytes` too, for the progress bar.
    """
    damages: list[str] = []
    total = sum(each["bytes"] for each in (*files.values(), *shards))
    with Progress(total=total, unit="B", unit_scale=True, desc="verifying", shown=not quiet) as progress:
        for name, expected in files.items():
            if not (folder / name).is_file():
                damages.append(f"{folder / name}: missing")
            elif file_xxh64(folder / name) != expected["xxh64"]:
                damages.append(f"{folder / name}: damaged")
            progress.update(expected["bytes"])
        for shard in shards:
            damages += shard_damage(shard)
            progress.update(shard["bytes"])
    return damages
