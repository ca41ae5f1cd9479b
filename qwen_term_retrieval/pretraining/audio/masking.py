"""Which frames of a clip are hidden: blocks that begin anywhere, drawn for all clips of a batch at once.

Whether a block begins at a frame follows from the visit's draw and the frame alone, by a hash: the same in any batch,
worker and rank, and a resumed run hides what it would have hidden. A block lies within its clip, at t < L - w.

Shapes: B clips, M frames that are masked on, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwen_term_retrieval.pretraining.audio.configuration import NestConfig

# Sets these numbers apart from what else is derived from the same draw.
_STREAM = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class BlockMask:
    """Draws masks.

    Attributes:
        block: frames of a block.
        probability: that one begins at a frame.
        min_blocks: begin at least in a clip that is longer than a block: those frames that come nearest to it.
        window: frames of a token.
        threshold: share of a token's frames above which it is masked.

    Example:
        >>> mask = BlockMask.of(NestConfig())
        >>> frames_BM = mask([100, 250], draws=[7, 8])
        >>> frames_BM.shape, mask.tokens(frames_BM).shape
        (torch.Size([2, 250]), torch.Size([2, 32]))
    """

    block: int
    probability: float
    min_blocks: int = 1
    window: int = 8
    threshold: float = 0.8

    @classmethod
    def of(cls, config: NestConfig) -> BlockMask:
        """As a model's config has it.

        After the subsampling a block begins at a token as often as at any of its mel frames before: as much is hidden.
        """
        if config.mask_position == "before":
            return cls(
                config.block_frames, config.mask_probability, config.min_blocks, config.window_frames,
                config.mask_threshold,
            )  # fmt: skip
        probability = 1 - (1 - config.mask_probability) ** config.window_frames
        return cls(config.block_frames // config.window_frames, probability, config.min_blocks, 1, 0.0)

    def __call__(self, num_frames: Sequence[int] | torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
        """mask_BM, bool, on the CPU.

        Args:
            num_frames: of each clip that are masked on: mel frames, or encoder frames after the subsampling.
            draws: of each clip's visit.
        """
        num_frames_B = np.asarray(num_frames, dtype=np.int64)
        position_M = np.arange(int(num_frames_B.max(initial=0)), dtype=np.int64)
        possible_BM = position_M < num_frames_B[:, None] - self.block
        chance_BM = np.where(possible_BM, _uniform(draws, position_M), 2.0)
        begins_BM = chance_BM < self.probability
        if self.min_blocks and len(position_M):
            nearest = min(self.min_blocks, len(position_M)) - 1
            nearest_B1 = np.partition(chance_BM, nearest, axis=1)[:, nearest, None]
            begins_BM |= (chance_BM <= nearest_B1) & possible_BM
        begun_BM = np.cumsum(begins_BM, axis=1, dtype=np.int32)
        covered_BM = begun_BM.copy()
        covered_BM[:, self.block :] -= begun_BM[:, : -self.block]
        return torch.from_numpy(covered_BM > 0)

    def tokens(self, mask_BM: torch.Tensor) -> torch.Tensor:
        """Which tokens are masked: masked_BT, bool; frames that a last window lacks are not masked."""
        mask_BM = torch.nn.functional.pad(mask_BM, (0, -mask_BM.shape[1] % self.window))
        return mask_BM.unflatten(1, (-1, self.window)).float().mean(-1) > self.threshold

    def rate(self, num_frames: int) -> np.ndarray:
        """How likely each frame of a clip is hidden, without `min_blocks`: float64 (num_frames,)."""
        position_M = np.arange(num_frames)
        first_M = np.maximum(position_M - self.block + 1, 0)
        last_M = np.minimum(position_M, num_frames - self.block - 1)
        return 1 - (1 - self.probability) ** np.maximum(last_M - first_M + 1, 0)


def _uniform(draws: Sequence[int], position_M: np.ndarray) -> np.ndarray:
    """A number in [0, 1) of each draw and position, float64 (B, M): SplitMix64 (Steele et al. 2014), twice."""
    with np.errstate(over="ignore"):
        seeds_B1 = _mixed(np.asarray(draws, dtype=np.uint64) ^ _STREAM)[:, None]
        mixed_BM = _mixed(seeds_B1 + position_M.astype(np.uint64) * _STREAM)
    return (mixed_BM >> np.uint64(11)) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + _STREAM
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
