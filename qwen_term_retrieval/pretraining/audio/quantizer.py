"""Speech to tokens that are never trained: a random projection and random codes (BEST-RQ, Chiu et al. 2022).

A window of mel frames v is projected to u = W v, and its token is the code c of unit norm with the greatest u · c: the
nearest one to u / |u|, found by one matrix product, a block of windows at a time, in float32 whatever autocast says.

Shapes: B clips, M mel frames, F mel bins, T tokens, H books, C codes, K numbers of a code, V numbers of a window.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.pretraining.audio.configuration import NestConfig

# Scores of so many windows lie in memory at once: at 8,192 codes, 32 MB.
_BLOCK_WINDOWS = 1024


class RandomProjectionQuantizer(nn.Module):
    """Mel frames to tokens, one of each book.

    Args:
        config: `num_books`, `num_codes`, `code_dim`, `normalize_input`, `quantizer_seed`.

    Attributes:
        projection: (H K, V), normal after Xavier; codes_HCK: unit norm. Buffers: they are saved, and never trained.

    Example:
        >>> quantizer = RandomProjectionQuantizer(NestConfig(num_books=2))
        >>> quantizer(torch.randn(3, 83, 80)).shape
        torch.Size([3, 11, 2])
    """

    projection: torch.Tensor
    codes_HCK: torch.Tensor

    def __init__(self, config: NestConfig):
        super().__init__()
        self.config = config
        self.window_frames = config.window_frames
        projection, codes_HCK = self.drawn()
        self.register_buffer("projection", projection)
        self.register_buffer("codes_HCK", codes_HCK)

    def drawn(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Projection and codes as the seed has them, on the CPU."""
        config = self.config
        generator = torch.Generator("cpu").manual_seed(config.quantizer_seed)
        inputs, outputs = config.window_frames * config.encoder.num_mel_bins, config.num_books * config.code_dim
        projection = torch.randn(outputs, inputs, generator=generator, device="cpu") * (2 / (inputs + outputs)) ** 0.5
        codes_HCK = torch.randn(config.num_books, config.num_codes, config.code_dim, generator=generator, device="cpu")
        return projection, F.normalize(codes_HCK, dim=-1)

    @torch.no_grad()
    def forward(self, mel_BMF: torch.Tensor) -> torch.Tensor:
        """tokens_BTH, int64; the last window of a clip is filled up with zeros."""
        with torch.autocast(mel_BMF.device.type, enabled=False):
            mel_BMF = F.pad(mel_BMF.float(), (0, 0, 0, -mel_BMF.shape[1] % self.window_frames))
            windows_BTV = mel_BMF.unflatten(1, (-1, self.window_frames)).flatten(2)
            if self.config.normalize_input:
                windows_BTV = F.layer_norm(windows_BTV, windows_BTV.shape[-1:])
            projected_PHK = F.linear(windows_BTV, self.projection.float()).flatten(0, 1)
            projected_PHK = projected_PHK.unflatten(1, (self.config.num_books, self.config.code_dim))
            codes_HKC = self.codes_HCK.float().transpose(1, 2)
            blocks = [
                torch.stack([(block_PHK[:, book] @ codes_KC).argmax(-1) for book, codes_KC in enumerate(codes_HKC)], -1)
                for block_PHK in projected_PHK.split(_BLOCK_WINDOWS)
            ]
            return torch.cat(blocks).unflatten(0, windows_BTV.shape[:2])
