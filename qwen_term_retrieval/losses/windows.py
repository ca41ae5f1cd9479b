"""The score of a query whose place in the clip is unknown: the best of its windows, or a soft maximum over them.

Shapes: Q queries, W windows, N candidates.
"""

from __future__ import annotations

import torch


def reduce_windows(
    scores_QWN: torch.Tensor, mask_QW: torch.Tensor, softness: torch.Tensor | float | None = None
) -> torch.Tensor:
    """One score for each query and candidate: (Q, N).

    Args:
        scores_QWN: of every window.
        mask_QW: which windows exist; a query with a single column of windows has it.
        softness: None takes the best window, which alone gets a gradient. A number s, in the unit of the scores, takes
            `s · log(mean over windows of e^(score / s))` instead (log-sum-exp pooling, Pinheiro and Collobert 2015):
            every window learns by its share, a query with one window keeps its score, and s → 0 is the best window.
    """
    if scores_QWN.shape[1] == 1:
        return scores_QWN[:, 0]
    floor = torch.finfo(scores_QWN.dtype).min
    if softness is None:
        return scores_QWN.masked_fill(~mask_QW[..., None], floor).amax(1)
    exponents_QWN = (scores_QWN / softness).masked_fill(~mask_QW[..., None], floor)
    log_count_Q1 = mask_QW.sum(1, keepdim=True).clamp(min=1).to(scores_QWN.dtype).log()
    return softness * (exponents_QWN.logsumexp(1) - log_count_Q1)


def reduce_windows_(
    scores_RWN: torch.Tensor, mask_RW: torch.Tensor, softness: torch.Tensor | None = None, *, leave_shares: bool = False
) -> torch.Tensor:
    """`reduce_windows` without autograd, in the memory of its input and two of its results.

    Args:
        scores_RWN: overwritten, unless there is one column of windows, which is the result.
        mask_RW, softness: see `reduce_windows`.
        leave_shares: leave in `scores_RWN` the derivative of the result with respect to each score.
    """
    if scores_RWN.shape[1] == 1:
        return scores_RWN[:, 0]
    floor = torch.finfo(scores_RWN.dtype).min
    if softness is None:
        best_RN = scores_RWN.masked_fill_(~mask_RW[..., None], floor).amax(1)
        if leave_shares:  # equal ones for windows that are best together
            scores_RWN.eq_(best_RN[:, None])
            scores_RWN.div_(scores_RWN.sum(1, keepdim=True))
        return best_RN
    scores_RWN.div_(softness).masked_fill_(~mask_RW[..., None], floor)
    best_RN = scores_RWN.amax(1)
    sum_RN = scores_RWN.sub_(best_RN[:, None]).exp_().sum(1)
    if leave_shares:
        scores_RWN.div_(sum_RN[:, None])
    log_count_R1 = mask_RW.sum(1, keepdim=True).to(scores_RWN.dtype).log()
    return sum_RN.log_().add_(best_RN).sub_(log_count_R1).mul_(softness)
