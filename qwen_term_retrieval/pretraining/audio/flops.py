"""Useful operations of a step of audio pre-training, from the lengths in a batch: padding left out.

The encoder is counted, forward and backward, at three lengths of one clip alone (`models/flops.py:count_flops`): what a
clip costs is a square polynomial of its frames. The head costs what its matrix does, for hidden tokens alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from qwen_term_retrieval.models.evaluation_mode import evaluation_mode
from qwen_term_retrieval.models.flops import count_flops
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining

_PASSES_TIMES_TWO = 6
_PROBED_FRAMES = (8, 16, 24)


class NestStepFlops:
    """Operations of micro-batches.

    Example:
        >>> NestStepFlops(model)(batch) / seconds / peak_flops(model.device, torch.bfloat16)     # doctest: +SKIP
    """

    def __init__(self, model: NestForPreTraining):
        self.model = model
        self._cost: np.ndarray | None = None

    def __call__(self, inputs: dict[str, Any]) -> int:
        """Operations for the inputs of one `forward`, `num_samples_B` and `mask` among them."""
        if self._cost is None:
            self._cost = self._measured()
        frames_B = self.model.num_frames(inputs["num_samples_B"]).double()
        hidden = self.model.block_mask.tokens(inputs["mask"]).sum()
        sums = torch.stack([frames_B.sum(), frames_B.square().sum(), hidden.to(frames_B)]).tolist()
        head = _PASSES_TIMES_TWO * self.model.head.weight.numel()
        return round(float(self._cost @ [len(frames_B), *sums[:2]] + head * sums[2]))

    def _measured(self) -> np.ndarray:
        """Operations a clip, a frame and a frame squared."""
        encoder, weights = self.model.encoder, [each for each in self.model.encoder.parameters() if each.requires_grad]
        implementation = encoder.config._attn_implementation
        counts = []
        with evaluation_mode(self.model, with_graph=True):
            try:
                encoder.set_attn_implementation("eager")  # the counter knows no fused attention on a CPU (torch 2.13)
                counts = [count_flops(partial(self._encode, frames), weights) for frames in _PROBED_FRAMES]
            finally:
                encoder.set_attn_implementation(implementation)
        rows = [[1.0, frames, frames**2] for frames in _PROBED_FRAMES]
        return np.linalg.solve(np.array(rows), np.array(counts, float))

    def _encode(self, frames: int) -> torch.Tensor:
        config, device = self.model.config, self.model.device
        mel_frames = frames * config.window_frames
        mel_1MF = torch.zeros(1, mel_frames, config.encoder.num_mel_bins, device=device)
        return self.model.encode(mel_1MF, torch.tensor([mel_frames], device=device))[0]
