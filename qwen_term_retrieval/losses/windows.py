"""The score of a query whose place in the clip is unknown: the best of its windows, or a soft maximum over them.

Shapes: R queries, W windows, N candidates.
"""

from __future__ import annotations

import torch


def reduce_windows_(
    scores_RWN: torch.Tensor,
    mask_RW: torch.Tensor,
    softness: torch.Tensor | float | None = None,
    *,
    leave_shares: bool = False,
) -> torch.Tensor:
    """One score for each query and candidate: (R, N). In place and without autograd, as scores fill the memory.

    Args:
        scores_RWN: of every window. Overwritten, unless there is but one column of windows: that is the result, a view.
        mask_RW: which windows exist, at least one a query.
        softness: None takes the best window, which alone gets a gradient; several that are best share it. A number s,
            in the unit of the scores, takes `s · log(mean over windows of e^(score / s))` instead (log-sum-exp pooling,
            Pinheiro and Collobert 2015): every window learns by its share, a query with one window keeps its score,
            and s → 0 is the best window.
        leave_shares: leave in `scores_RWN`, where there are several columns, the derivative of the result with respect
            to each score.

    >>> scores = torch.tensor([[[0.9], [0.1]]])
    >>> reduce_windows_(scores, torch.tensor([[True, True]]), leave_shares=True).item()
    0.8999999761581421
    >>> scores.flatten().tolist()
    [1.0, 0.0]
    """
    if scores_RWN.shape[1] == 1:
        return scores_RWN[:, 0]
    floor = torch.finfo(scores_RWN.dtype).min
    if softness is None:
        best_RN = scores_RWN.masked_fill_(~mask_RW[..., None], floor).amax(1)
        if leave_shares:
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
