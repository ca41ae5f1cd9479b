"""Clips in which no term is spoken: their windows must not look like any.

With s the scaled cosine of the clip with each term of the global batch and m the scaled margin, a clip costs

    softplus( log sum over terms of e^s  -  m )  =  -log( e^m / (e^m + sum over terms of e^s) )

the cross-entropy of choosing "nothing", whose score is always the margin, among all terms. The best windows of the
nearest terms get most of the gradient. A softmax over more answers asks for a wider gap: where N terms score alike,
"nothing" is as likely as all of them together at a cosine of margin - temperature · ln N, and the gradient fades below
that. Terms that are said in the clip after all (part of its text, though not labelled) are left out.
"""

from __future__ import annotations

import torch

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.losses.contrastive import Candidates, Queries
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS, negative_log_sum_exp, softplus


def no_term_loss(
    queries: Queries,
    candidates: Candidates,
    logit_scale: torch.Tensor,
    margin: float,
    *,
    window_temperature: float | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> torch.Tensor:
    """Mean over the no-term clips of the global batch; zero where there are none.

    Args:
        queries: all windows of this rank's clips without a term; what stands in their text is neutral.
        candidates: terms of all ranks (`Candidates.gather`).
        logit_scale: inverse temperature, a scalar.
        margin: cosine that "nothing" always scores.
        window_temperature, block_elements: as in `contrastive_loss`.

    Returns:
        This rank's share, as in `contrastive_loss`.

    Raises:
        ValueError: as `contrastive_loss`.

    >>> silence = Queries(torch.eye(2), torch.tensor([[0, 1]]), torch.tensor([[-1]]), torch.tensor([[-1]]))
    >>> term = Candidates(torch.tensor([[0.6, 0.8]]), torch.tensor([7]))
    >>> loss = no_term_loss(silence, term, torch.tensor(10.0), margin=0.2)
    >>> round(loss.item(), 4)  # its best window has a cosine of 0.8: log(1 + e^(8 - 2))
    6.0025
    """
    table = queries.table(candidates.ids_N, window_temperature, block_elements)
    by_query_Q, _, _ = negative_log_sum_exp(queries.vectors_VD, candidates.vectors_ND, logit_scale, table)
    num_queries = sum_over_ranks(torch.tensor(len(by_query_Q), device=by_query_Q.device)).clamp(min=1)
    return softplus(by_query_Q - logit_scale * margin).sum() * world_size() / num_queries
