"""Peak memory and time of the contrastive loss, in blocks and with the whole table of scores written out.

    python benchmarks/loss_memory.py                       # 16,384 queries x 16,384 terms, 384 dimensions
    python benchmarks/loss_memory.py --queries 2048 --terms 4096

Each case runs forward and backward once, on one thread, in a process of its own. Memory is what the process holds at
its fullest above what it held before the embeddings were made, as the kernel counts it. The floor is what no loss can
avoid: the embeddings and their gradients. The bound is 1.3 times the floor and one block of scores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS

MB = 1e6


def whole_table_loss(queries, candidates, logit_scale):
    logits_QN = logit_scale * queries.vectors_VD @ candidates.vectors_ND.T
    positive_QN = queries.positive_ids_QP == candidates.ids_N
    losses = []
    for logits, positive in ((logits_QN, positive_QN), (logits_QN.T, positive_QN.T)):
        negatives = logits.masked_fill(positive, torch.finfo(logits.dtype).min).logsumexp(1)
        losses.append((F.softplus(negatives[:, None] - logits) * positive).sum(1).mean())
    return sum(losses) / 2


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(loss_function, num_queries, num_terms, dim):
    """Seconds of one step, and the peak above what the process held before the embeddings."""
    torch.manual_seed(0)
    torch.randn(64, 64) @ torch.randn(64, 64)  # what the first product loads is not the loss's
    warm = Queries(torch.randn(2, 4, requires_grad=True), *[torch.arange(2)[:, None]] * 3)
    loss_function(warm, Candidates(torch.randn(2, 4), torch.arange(2)), torch.tensor(1.0)).backward()
    before = peak_bytes()
    vectors_QD = F.normalize(torch.randn(num_queries, dim), dim=-1).requires_grad_()
    vectors_ND = F.normalize(torch.randn(num_terms, dim), dim=-1).requires_grad_()
    ids_Q1 = (torch.arange(num_queries) % num_terms)[:, None]
    queries = Queries(vectors_QD, torch.arange(num_queries)[:, None], ids_Q1, ids_Q1)
    started = time.perf_counter()
    loss = loss_function(queries, Candidates(vectors_ND, torch.arange(num_terms)), torch.tensor(14.3))
    loss.backward()
    return {"seconds": time.perf_counter() - started, "bytes": peak_bytes() - before, "loss": loss.item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=16_384)
    parser.add_argument("--terms", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--only", choices=["blocks", "table"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        function = contrastive_loss if options.only == "blocks" else whole_table_loss
        print(json.dumps(measure(function, options.queries, options.terms, options.dim)))
        return
    found = {}
    for case in ("blocks", "table"):
        # glibc gives large tensors back when they are freed; by default it keeps some, as it happens to suit it. On one
        # thread, as those of the matrix library hold buffers of their own.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *sys.argv, "--only", case]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found[case] = json.loads(done.stdout) if done.returncode == 0 else None
    floor = 2 * 4 * (options.queries + options.terms) * options.dim
    block = 4 * min(BLOCK_ELEMENTS, options.queries * options.terms)
    print(f"floor (embeddings and their gradients) {floor / MB:.0f} MB, one block {block / MB:.0f} MB")
    for case, result in found.items():
        if result is None:
            print(f"{case:<7} did not finish: out of memory?")
            continue
        ratio = result["bytes"] / (floor + block)
        print(
            f"{case:<7} peak {result['bytes'] / MB:7.0f} MB = {ratio:.2f} x (floor + block), "
            f"{result['seconds']:.2f} s, loss {result['loss']:.6f}"
        )


if __name__ == "__main__":
    main()
