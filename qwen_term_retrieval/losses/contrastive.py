"""Multi-positive InfoNCE between spoken queries and candidate terms, the same on N ranks as on one.

A query is a piece of a clip: one vector (its span is known, or the clip is one span), or several windows of which the
best counts (max over windows). A candidate is a term, or a chunk text, embedded once however often the global batch
holds it. For each query a candidate is one of three:

- positive: it is what was said there;
- neutral: it is said elsewhere in the same clip, or is an alias of it, or part of it; it takes no part in the loss;
- negative: everything else.

With s the scaled cosine and N the negatives, a query with positives P costs

    mean over p in P of  -log( e^s_p / (e^s_p + sum over n in N of e^s_n) )

so positives do not compete with each other (the "out" form of supervised contrastive learning, Khosla et al. 2020).
The same is done in the other direction, each candidate choosing among the queries, and the two are averaged.

Shapes: Q queries, W windows, N candidates, D embedding; P and M padded lists of ids (padding is -1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen_term_retrieval.losses.distributed import gather_rows, pad_to_widest, rank, row_counts, world_size

NO_ID = -1


@dataclass
class Queries:
    """The spoken side of one loss, on one rank.

    Attributes:
        vectors_QWD: unit-norm window vectors of each query (W = 1 where the span is known).
        mask_QW: which windows exist.
        positive_ids_QP: ids of what was said in the query; int64, padded with -1.
        neutral_ids_QM: ids that must not be negatives of the query; int64, padded with -1.
    """

    vectors_QWD: torch.Tensor
    mask_QW: torch.Tensor
    positive_ids_QP: torch.Tensor
    neutral_ids_QM: torch.Tensor

    def gather(self) -> Queries:
        """The queries of all ranks."""
        return Queries(
            gather_rows(pad_to_widest(self.vectors_QWD, 0.0)),
            gather_rows(pad_to_widest(self.mask_QW.long(), 0)).bool(),
            gather_rows(pad_to_widest(self.positive_ids_QP, NO_ID)),
            gather_rows(pad_to_widest(self.neutral_ids_QM, NO_ID)),
        )


def contrastive_loss(
    queries: Queries, candidates_ND: torch.Tensor, candidate_ids_N: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric multi-positive InfoNCE over the global batch.

    Args:
        queries: this rank's queries.
        candidates_ND: this rank's candidates, unit norm, each id once.
        candidate_ids_N: their ids, int64.
        logit_scale: inverse temperature, a scalar.

    Returns:
        This rank's share of the loss: its mean over ranks, which is what DDP takes of the gradients, is the loss of
        the global batch. Zero, with a gradient path, where no query has a positive.
    """
    everyone = queries.gather()
    bank_ND, bank_ids_N = gather_rows(candidates_ND), gather_rows(candidate_ids_N)
    first_N = first_occurrences(bank_ids_N)
    bank_ND, bank_ids_N = bank_ND[first_N], bank_ids_N[first_N]

    query_loss_sum, num_queries = _choose_candidates(queries, bank_ND, bank_ids_N, logit_scale)
    own_N = _owned_here(first_N, row_counts(candidates_ND))
    bank_loss_sum, num_candidates = _choose_queries(everyone, bank_ND[own_N], bank_ids_N[own_N], logit_scale)

    totals = torch.stack([num_queries, num_candidates]).to(logit_scale.dtype)
    if world_size() > 1:
        torch.distributed.all_reduce(totals)
    share = world_size() / totals.clamp(min=1)
    return (query_loss_sum * share[0] + bank_loss_sum * share[1]) / 2


def first_occurrences(ids_N: torch.Tensor) -> torch.Tensor:
    """Positions of the first occurrence of each id, in order of position: the same on every rank."""
    _, inverse = torch.unique(ids_N, return_inverse=True)
    position = torch.arange(len(ids_N), device=ids_N.device)
    first = torch.full((int(inverse.max()) + 1 if len(ids_N) else 0,), len(ids_N), device=ids_N.device)
    return first.scatter_reduce(0, inverse, position, "amin").sort().values


def window_logits(queries: Queries, candidates_ND: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Scaled cosine of each query with each candidate, the best of its windows: (Q, N)."""
    scores_QWN = queries.vectors_QWD @ candidates_ND.T
    if scores_QWN.shape[1] > 1:
        scores_QWN = scores_QWN.masked_fill(~queries.mask_QW[..., None], torch.finfo(scores_QWN.dtype).min)
        scores_QN = scores_QWN.amax(1)
    else:
        scores_QN = scores_QWN[:, 0]
    return (logit_scale * scores_QN).float()


def _choose_candidates(queries, bank_ND, bank_ids_N, logit_scale):
    logits_QN = window_logits(queries, bank_ND, logit_scale)
    positive_QN = contains(queries.positive_ids_QP, bank_ids_N)
    neutral_QN = contains(queries.neutral_ids_QM, bank_ids_N) & ~positive_QN
    return multi_positive_cross_entropy(logits_QN, positive_QN, neutral_QN)


def _choose_queries(everyone, own_ND, own_ids_N, logit_scale):
    logits_QN = window_logits(everyone, own_ND, logit_scale)
    positive_QN = contains(everyone.positive_ids_QP, own_ids_N)
    neutral_QN = contains(everyone.neutral_ids_QM, own_ids_N) & ~positive_QN
    return multi_positive_cross_entropy(logits_QN.T, positive_QN.T, neutral_QN.T)


def contains(ids_QP: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Whether list q holds id n: bool (Q, N). Padding (-1) matches nothing: ids are non-negative."""
    found_QN = torch.zeros(len(ids_QP), len(ids_N), dtype=torch.bool, device=ids_QP.device)
    for ids_Q in ids_QP.unbind(1):
        found_QN |= ids_Q[:, None] == ids_N[None]
    return found_QN


def multi_positive_cross_entropy(
    logits_QN: torch.Tensor, positive_QN: torch.Tensor, neutral_QN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows that have a positive of the row's loss, and how many such rows there are.

    With the log-sum-exp of a row's negatives n, one positive's term is log(1 + e^(n - s_p)) = softplus(n - s_p).
    """
    # A finite floor, not -inf: a row without negatives must cost 0 and send no NaN back.
    floor = torch.finfo(logits_QN.dtype).min
    negatives_Q = logits_QN.masked_fill(positive_QN | neutral_QN, floor).logsumexp(1)
    per_positive_QN = F.softplus(negatives_Q[:, None] - logits_QN) * positive_QN
    num_positives_Q = positive_QN.sum(1)
    loss_Q = per_positive_QN.sum(1) / num_positives_Q.clamp(min=1)
    return loss_Q.sum(), (num_positives_Q > 0).sum()


def _owned_here(first_N: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Which of the unique candidates came first from this rank."""
    start = sum(counts[: rank()])
    return (first_N >= start) & (first_N < start + counts[rank()])
