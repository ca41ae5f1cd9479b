"""Peak memory and time of the contrastive loss, in blocks and with the whole table of scores written out.

    python -m benchmarks.training.loss_memory           # 16,384 queries x 16,384 terms, 384 dimensions
    python -m benchmarks.training.loss_memory --queries 4096 --terms 4096 --rounds 9
    python -m benchmarks.training.loss_memory --cases infonce sigmoid --rounds 3

Memory: each case runs forward and backward once, on one thread, in a process of its own. It is what the process holds
at its fullest above what it held before the embeddings were made, as the kernel counts it. Two ways of counting: after
the forward pass, against the embeddings and one block of scores; after both, against the embeddings, their gradients,
which no loss can do without, and one block. The bound of both is 1.3.

Time (`--rounds`): forward and backward of each case take turns in one process with the matrix products that the loss
cannot do without (of the table, of it again, and of its gradient with either side). Given are medians of the ratios of
neighbours, as other work on the machine slows them alike. The peers are what InfoNCE comes to where each query has one
positive: `cross-entropy`, of one table along both axes; `open_clip`, of a table for each direction, as it has it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss

MB = 1e6
BOUND = 1.3
SCALE, BIAS = 14.3, -10.0
SOFT = 0.1


def infonce(queries, candidates, scale, **settings):
    return contrastive_loss(queries, candidates, scale, **settings)


def sigmoid(queries, candidates, scale, **settings):
    return sigmoid_loss(queries, candidates, scale, torch.tensor(BIAS), **settings)


def cross_entropy(queries, candidates, scale):
    logits_QN = scale * queries.vectors_VD @ candidates.vectors_ND.T
    right_Q = torch.arange(len(logits_QN))
    return (F.cross_entropy(logits_QN, right_Q) + F.cross_entropy(logits_QN.T, right_Q)) / 2


def open_clip(queries, candidates, scale):
    logits_QN = scale * queries.vectors_VD @ candidates.vectors_ND.T
    logits_NQ = scale * candidates.vectors_ND @ queries.vectors_VD.T
    right_Q = torch.arange(len(logits_QN))
    return (F.cross_entropy(logits_QN, right_Q) + F.cross_entropy(logits_NQ, right_Q)) / 2


# Name: function, windows a query, settings of the loss.
CASES: dict[str, Any] = {
    "infonce": (infonce, 1, {}),
    "sigmoid": (sigmoid, 1, {}),
    "infonce, best of 3 windows": (infonce, 3, {}),
    "infonce, soft windows": (infonce, 3, {"window_temperature": SOFT}),
    "sigmoid, best of 3 windows": (sigmoid, 3, {}),
    "sigmoid, soft windows": (sigmoid, 3, {"window_temperature": SOFT}),
}
PEERS: dict[str, Any] = {"cross-entropy": (cross_entropy, 1, {}), "open_clip": (open_clip, 1, {})}
ALL = CASES | PEERS


def make_batch(num_queries, num_terms, dim, num_windows):
    generator = torch.Generator().manual_seed(0)
    # In place: what making them takes is not the loss's.
    vectors_VD, vectors_ND = (
        torch.randn(rows, dim, generator=generator) for rows in (num_queries * num_windows, num_terms)
    )
    for vectors in (vectors_VD, vectors_ND):
        vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True)).requires_grad_()
    ids_Q1 = (torch.arange(num_queries) % num_terms)[:, None]
    windows_QW = torch.arange(num_queries * num_windows).view(num_queries, num_windows)
    queries = Queries(vectors_VD, windows_QW, ids_Q1, ids_Q1)
    return queries, Candidates(vectors_ND, torch.arange(num_terms)), torch.tensor(SCALE, requires_grad=True)


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(name, num_queries, num_terms, dim):
    """Peaks above what the process held before the embeddings, after the forward pass and at the end."""
    function, num_windows, settings = ALL[name]
    # What the first products, of full size, leave behind in the matrix library is not the loss's.
    small = make_batch(256, 256, dim, num_windows)
    function(*small, **settings).backward()
    torch.mm(torch.ones(256, dim), torch.ones(dim, 2048))
    before = peak_bytes()
    batch = make_batch(num_queries, num_terms, dim, num_windows)
    loss = function(*batch, **settings)
    forward = peak_bytes() - before
    loss.backward()
    return {"forward": forward, "backward": peak_bytes() - before, "loss": loss.item()}


def memory_rows(names, options):
    sizes = (options.queries, options.terms, options.dim)
    for name in names:
        # glibc gives large tensors back when they are freed; by default it keeps some, as it happens to suit it. On one
        # thread, as those of the matrix library hold buffers of their own.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
        flags = [f"--{option}={size}" for option, size in zip(("queries", "terms", "dim"), sizes, strict=True)]
        command = [sys.executable, "-m", "benchmarks.training.loss_memory", *flags, "--only", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{name:<28}did not finish: out of memory?"
            continue
        found = json.loads(done.stdout)
        embeddings = 4 * (options.queries * ALL[name][1] + options.terms) * options.dim
        block = 4 * min(BLOCK_ELEMENTS, options.queries * options.terms)
        forward, both = found["forward"] / (embeddings + block), found["backward"] / (2 * embeddings + block)
        verdict = "" if name in PEERS else "met" if max(forward, both) <= BOUND else "MISSED"
        yield (
            f"{name:<28}{found['forward'] / MB:7.0f} MB ={forward:6.2f} x (E + B)"
            f"{found['backward'] / MB:8.0f} MB ={both:6.2f} x (E + G + B)  {verdict:<7} loss {found['loss']:.6f}"
        )


def products(queries, candidates):
    """The four products of the size of the table, a block at a time."""
    vectors_VD, vectors_ND = queries.vectors_VD.detach(), candidates.vectors_ND.detach()
    grad_ND = torch.zeros_like(vectors_ND)
    scores_RN = vectors_ND.new_empty(max(1, BLOCK_ELEMENTS // len(vectors_ND)), len(vectors_ND))
    for part_RD in vectors_VD.split(len(scores_RN)):
        block_RN = scores_RN[: len(part_RD)]
        torch.mm(part_RD, vectors_ND.T, out=block_RN)
        torch.mm(part_RD, vectors_ND.T, out=block_RN)
        torch.mm(block_RN, vectors_ND)
        grad_ND.addmm_(block_RN.T, part_RD)


def time_rows(names, options):
    torch.set_num_threads(options.threads)
    seconds = {}
    for name in names:
        function, num_windows, settings = ALL[name]
        batch = make_batch(options.queries, options.terms, options.dim, num_windows)
        pairs = []
        for number in range(options.rounds + 1):
            turns = [lambda: function(*batch, **settings).backward(), lambda: products(*batch[:2])]  # noqa: B023
            took = [0.0, 0.0]
            for turn in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                turns[turn]()
                took[turn] = time.perf_counter() - started
            pairs.append(took)
        seconds[name] = pairs[1:]
    flops = 8 * options.queries * options.terms * options.dim
    for name, pairs in seconds.items():
        ratio = statistics.median(whole / floor for whole, floor in pairs)
        best = min(floor for _, floor in pairs) / ALL[name][1]
        yield f"{name:<28}{ratio:6.2f} x the four products (at best {flops / best / 1e9:.0f} GFLOP/s)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=16_384)
    parser.add_argument("--terms", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument(
        "--cases", nargs="+", choices=list(ALL), help="default: all of ours, and the peers, which hold whole tables"
    )
    parser.add_argument("--rounds", type=int, default=0, help="measure time as well, in so many turns")
    parser.add_argument("--threads", type=int, default=1, help="of the measurement of time")
    parser.add_argument("--only", choices=list(ALL), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure_memory(options.only, options.queries, options.terms, options.dim)))
        return
    # The peers take the first term for the first query's, and so on.
    names = options.cases or list(ALL if options.queries == options.terms else CASES)
    print("Memory: E embeddings, G their gradients, B one block of scores")
    for row in memory_rows(names, options):
        print(row, flush=True)
    if options.rounds:
        print("Time of forward and backward")
        for row in time_rows(names, options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
