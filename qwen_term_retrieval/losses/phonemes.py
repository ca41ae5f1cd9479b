"""The loss of the phoneme head: what is said in a clip, sound by sound, by CTC (Graves et al. 2006).

Shapes: B clips.
"""

from __future__ import annotations

import torch


def phoneme_loss(nll_B: torch.Tensor, spoken_clips: torch.Tensor | float) -> torch.Tensor:
    """Mean over the clips of a step in which something is known to be said; zero where there are none.

    Args:
        nll_B: by the sound, zero for a clip of unknown text; see `PhonemeHead.nll`.
        spoken_clips: how many clips of known text a batch of this step holds, as a mean over ranks and micro-batches.
            With it the gradient of a step is the same however its clips are shared out.

    >>> phoneme_loss(torch.tensor([3.0, 0.0, 1.0]), 2.0)
    tensor(2.)
    """
    spoken = torch.as_tensor(spoken_clips, dtype=nll_B.dtype, device=nll_B.device)
    return nll_B.sum() / torch.where(spoken > 0, spoken, torch.ones_like(spoken))
