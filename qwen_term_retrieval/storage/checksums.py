"""Whether a file still is what it was when its checksum was taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import xxhash
from tqdm import tqdm


def file_xxh64(path: Path, *, skip: int = 0) -> str:
    """Hex xxh64 of a file from byte `skip` on."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_damage(path: Path, xxh64: str) -> Iterator[str]:
    """One line if a file is missing, or is not the one whose checksum this is."""
    if not path.is_file():
        yield f"{path}: missing"
    elif file_xxh64(path) != xxh64:
        yield f"{path}: damaged"


def damages_found(checks: Sequence[tuple[Callable[[], Iterable[str]], int]], *, quiet: bool) -> list[str]:
    """The lines that checks give, each of them with the number of bytes that it reads, behind a progress bar."""
    damages: list[str] = []
    total = sum(num_bytes for _, num_bytes in checks)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=True if quiet else None) as progress:
        for check, num_bytes in checks:
            damages += check()
            progress.update(num_bytes)
    return damages
