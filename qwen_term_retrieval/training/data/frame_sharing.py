"""Frames of a frozen tower, computed by all ranks of a run: each its share of what the cache lacks.

Ranks whose cache is one folder share the work; two machines with a disk each have a cache each, and compute for
themselves. The shares are of whole batches, dealt out by their audio: frames have the same bytes whatever the number of
ranks. Where a rank fails, the others finish and keep their shares; then all of them end with its error.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from qwen_term_retrieval.distributed import gathered, on_every_rank, rank, world_size
from qwen_term_retrieval.models.frame_cache import FrameCache
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.storage.atomic import atomic_file

_IDENTITY = "identity"


def frames_by_all_ranks(
    model: TermRetrievalModel,
    clips: Any,
    keys: Sequence[str],
    digests_of: Callable[[], Sequence[tuple[bytes, int]]],
    cache_dir: str | Path | None = None,
    *,
    batch_size: int = 32,
    show_progress: bool = True,
) -> FrameCache:
    """Compute what is missing and open the cache; every rank calls it, with the same clips.

    Args:
        model: its audio tower is frozen.
        clips: as `TermRetrievalModel.encode_audio` takes them, or a dataset with a column `audio`; only what is missing
            is looked at.
        keys: what errors call the clips.
        digests_of: gives 16 bytes that tell each clip from all others, and about how many samples it has.
        cache_dir: by default in the library's cache.
        batch_size: clips of similar length encoded at a time.
        show_progress: a bar for the share of rank 0.

    Raises:
        ValueError: a clip is unfit; the message names it.
        OtherRankError: another rank failed.
    """

    def opened() -> tuple[FrameCache, list[int]]:
        digests = digests_of()
        cache = FrameCache.open(model, digests, cache_dir)
        _identify(cache.folder)
        return cache, [length for _, length in digests]

    def missing() -> list[list[int]]:
        cache.open_segments()
        return cache.missing_batches(lengths, batch_size)

    cache, lengths = on_every_rank(opened)
    while True:
        batches = on_every_rank(missing)
        work = gathered((_identity(cache.folder), xxhash.xxh3_128_hexdigest(repr(batches).encode()), len(batches)))
        if not any(num_batches for *_, num_batches in work):
            return cache
        # A rank that finds other clips missing, because another run fills the same folder, shares with nobody.
        peers = [peer for peer, found in enumerate(work) if found == work[rank()]]
        samples = [len(batch) * max(lengths[clip] for clip in batch) for batch in batches]
        own = [batches[number] for number in equal_shares(samples, len(peers))[peers.index(rank())]]
        on_every_rank(partial(cache.compute, model, clips, own, keys, show_progress=show_progress and rank() == 0))


def equal_shares(costs: Sequence[int], num_shares: int) -> list[list[int]]:
    """Positions in `costs`, dealt out so that the sums are about equal: the costliest first, to who has least.

    Example:
        >>> equal_shares([7, 6, 4, 3, 2], 2)
        [[0, 3, 4], [1, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    least = [(0, share) for share in range(num_shares)]
    for position in sorted(range(len(costs)), key=lambda position: -costs[position]):
        total, share = heapq.heappop(least)
        shares[share].append(position)
        heapq.heappush(least, (total + costs[position], share))
    return shares


def _identify(folder: Path) -> None:
    """Give the folder a name that is told from those of folders at the same path of other machines."""
    if world_size() > 1 and not (folder / _IDENTITY).is_file():
        # Of ranks that come here together the last wins, before any of them reads it.
        with atomic_file(folder / _IDENTITY) as file:
            file.write(uuid.uuid4().hex.encode())


def _identity(folder: Path) -> bytes:
    return (folder / _IDENTITY).read_bytes() if world_size() > 1 else b""
