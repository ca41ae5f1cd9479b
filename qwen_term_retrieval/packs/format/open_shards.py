"""Where shards are: a table of open shards in this process, and hints on disk for all others.

A dataset names a shard by its uid alone, so packs move, are copied and concatenate. `register_pack` enters the shards
of a folder into the table and leaves a hint at `<cache>/packs/<uid>`: folders where that shard was seen, newest first.
A process that meets an unknown uid (a spawned worker, `load_from_disk` tomorrow) follows the hints. Neither is trusted:
whatever file is opened must carry the uid in its header.
"""

from __future__ import annotations

import logging
import mmap
from pathlib import Path

import numpy as np

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.pack_json import read_pack_json, shards_of
from qwen_term_retrieval.packs.format.shards import DTYPE, ShardHeader
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.packages import cache_root

logger = logging.getLogger(__name__)

HINTS_PER_SHARD = 8
# Process-local on purpose: memory maps neither pickle nor belong into a feature, whose hash names cache files.
_paths: dict[int, Path] = {}
_samples: dict[int, np.ndarray] = {}


class MissingShardError(PackError):
    """A row refers to a shard that is not where it was last seen."""


def register_pack(folder: str | Path) -> None:
    """Tell this process, and those to come, where the shards of a pack are.

    Needed only for packs that were moved or copied here: packing and `load_dataset` do it by themselves.

    Raises:
        PackError: not a pack, or a damaged one.
    """
    folder = Path(folder).absolute()
    for shard in shards_of(read_pack_json(folder)):
        _paths[shard["uid"]] = folder / shard["file"]
        _leave_hint(shard["uid"], folder / shard["file"])


def shard_samples(uid: int) -> np.ndarray:
    """All int16 of a shard file, header included: a read-only view of the memory-mapped file.

    Raises:
        MissingShardError: the shard is nowhere to be found.
    """
    samples = _samples.get(uid)
    if samples is None:
        samples = _samples[uid] = _open_shard(uid)
    return samples


def shard_path(uid: int) -> Path:
    """The file that the samples of a shard come from.

    Raises:
        MissingShardError: the shard is nowhere to be found.
    """
    shard_samples(uid)
    return _paths[uid]


def _open_shard(uid: int) -> np.ndarray:
    tried = []
    for path in dict.fromkeys([_paths[uid]] if uid in _paths else []) | dict.fromkeys(_hints(uid)):
        try:
            samples = _map(path, uid)
        except (OSError, PackError) as error:
            tried.append(f"  {path}: {error if isinstance(error, PackError) else error.strerror}")
            continue
        if tried:
            logger.warning("shard %016x is read from its copy %s:\n%s", uid, path, "\n".join(tried))
        _paths[uid] = path
        return samples
    seen = "It was seen here:\n" + "\n".join(tried) if tried else "No pack that holds it was ever opened here."
    raise MissingShardError(
        f"shard {uid:016x} of a pack is missing. {seen}\n"
        "If the pack was moved or copied, say where: qwen_term_retrieval.register_pack(folder)"
    )


def _map(path: Path, uid: int) -> np.ndarray:
    header = ShardHeader.read(path)
    if header.uid != uid:
        raise PackError(f"holds another shard ({header.uid:016x} of pack {header.pack_uuid})")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # No MADV_RANDOM: without read-ahead a clip of 64 KB would be sixteen reads from a cold disk.
    return np.frombuffer(mapped, dtype=DTYPE)


def _hint_file(uid: int) -> Path:
    return cache_root() / "packs" / f"{uid:016x}"


def _hints(uid: int) -> list[Path]:
    try:
        return [Path(line) for line in _hint_file(uid).read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError:
        return []


def _leave_hint(uid: int, path: Path) -> None:
    known = _hints(uid)
    if known and known[0] == path:
        return
    paths = [path, *(other for other in known if other != path)][:HINTS_PER_SHARD]
    try:
        _hint_file(uid).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(_hint_file(uid)) as file:
            file.write("\n".join(map(str, paths)).encode())
    except OSError as error:
        logger.warning("cannot note where %s is (%s); other processes must call register_pack themselves", path, error)
