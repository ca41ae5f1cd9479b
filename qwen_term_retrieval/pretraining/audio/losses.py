"""The loss: how unlikely the model finds the tokens of the clean speech, where it was not shown them.

Shapes: N masked tokens, C codes, H books.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class MaskedTokenLoss(nn.Module):
    """Negative log-likelihood of masked tokens, mean over books, divided by what counts as all of them.

    The mean of one micro-batch on one rank weighs a token by how many happen to be masked beside it: a step divides by
    the masked tokens of all its micro-batches on all ranks.

    Example:
        >>> MaskedTokenLoss()(torch.zeros(5, 8192, 1), torch.zeros(5, 1, dtype=torch.long))
        tensor(9.0109)
    """

    def forward(
        self, logits_NCH: torch.Tensor, tokens_NH: torch.Tensor, num_tokens: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """In nats, at least in float32; 0, with a graph, where nothing is masked.

        Args:
            logits_NCH: of masked tokens alone.
            tokens_NH: their codes.
            num_tokens: divide by so many; None: by N.
        """
        logits_NCH = logits_NCH.to(torch.promote_types(logits_NCH.dtype, torch.float32))
        total = F.cross_entropy(logits_NCH, tokens_NH, reduction="sum") / tokens_NH.shape[1]
        count = torch.as_tensor(len(tokens_NH) if num_tokens is None else num_tokens, device=total.device)
        return total / count.clamp(min=1)
