"""Every offset of a file of ids as a training window: the memory-mapped dataset that lectures on large files show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens
from qwen_term_retrieval.tokens.token_pack import TokenShardHeader


class LargeTokenDataset(MmapTokens):
    """`(x, y)` at every offset of the ids: int64 tensors of `sequence_length`, y one token ahead of x.

    Opening costs the header, whatever the size of the file. `DataLoader(dataset, shuffle=True)` would list every offset
    in memory, 40 bytes each; give `sampler=dataset.sampler(seed=0)` in its place, which lists none.

    Args:
        data_path: a bare file of little-endian uint16 ids, a shard, or a folder of `pack_tokens`.
        sequence_length: tokens in x, and in y.

    Raises:
        PackError, ValueError: as `MmapTokens`.

    Example:
        >>> dataset = LargeTokenDataset("train.bin", 1024)                                            # doctest: +SKIP
        >>> DataLoader(dataset, batch_size=32, num_workers=8, sampler=dataset.sampler(seed=0))        # doctest: +SKIP
    """

    def __init__(self, data_path: str | Path, sequence_length: int):
        path = Path(data_path)
        bare = path.is_file() and not TokenShardHeader.begins(path)
        super().__init__(path, sequence_length, stride=1, dtype="uint16" if bare else None)

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.sequence_length)
