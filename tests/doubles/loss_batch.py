"""Queries and candidates drawn at random, as the losses take them."""

import torch
import torch.nn.functional as F

from qwen_term_retrieval.losses.contrastive import Candidates, Queries


def contains(ids_QM, ids_N):
    """Whether each query has each candidate among its ids, (Q, N); padding is nobody's."""
    return (ids_QM[:, :, None] == ids_N).any(1) & (ids_N >= 0)


def make_batch(num_queries, num_windows, num_candidates, seed=0, dim=6, scale=12.0):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()

    def ids(columns):
        return torch.randint(-1, 2 * num_candidates, (num_queries, columns), generator=generator)

    num_vectors = num_queries * num_windows
    windows = torch.randperm(num_vectors, generator=generator).view(num_queries, num_windows)
    width = torch.randint(1, num_windows + 1, (num_queries, 1), generator=generator)
    windows = windows.masked_fill(torch.arange(num_windows) >= width, -1)
    queries = Queries(unit(num_vectors, dim), windows, ids(2), ids(3))
    candidate_ids = torch.randperm(2 * num_candidates, generator=generator)[:num_candidates]
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    return queries, Candidates(unit(num_candidates, dim), candidate_ids), scale
