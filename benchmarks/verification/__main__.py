"""What alignment and search by sounds cost, and what they find: `python -m benchmarks.verification`.

    python -m benchmarks.verification                              # simulated emissions; a quiet machine
    python -m benchmarks.verification --emissions emissions.npz    # of a trained head, see `clips.read_emissions`

Every way takes its turn at each clip; the median over clips is reported. *floor*: the additions and maxima of all
states in all frames (of a forward score, sums of logarithms), done at once on arrays that lie in the cache; a search
that drops prefixes may be below it. A peer is only run on banks up to `--peer-terms`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import table
from benchmarks.results_json import RESULTS, write_results
from benchmarks.verification.clips import HeardClip, read_emissions, simulated
from benchmarks.verification.peers import Search, by_ctc_loss, by_flashlight
from benchmarks.verification.spelling import spelling
from benchmarks.verification.terms import pronounced, real_terms
from qwen_term_retrieval.verification import Pairs, PronunciationBank, SoundIndex, best_paths, forward_scores
from qwen_term_retrieval.verification.prefix_tree import PrefixTree

NUM_CANDIDATES = 200
TOP = 10
_CACHED = 8192


def milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1e3, result


def simulated_clips(terms: list[str], bank: PronunciationBank, number: int) -> list[HeardClip]:
    rng = np.random.default_rng(0)
    rows = rng.choice(len(bank), number)
    return [HeardClip(terms[row], simulated(bank[row], bank.num_classes, rng)) for row in rows]


def floor_ms(num_states: float, join: Callable) -> float:
    """So many times a join and an addition for both states of a slot, on one short array."""
    scores, others = torch.zeros(_CACHED), torch.zeros(_CACHED)
    rounds = 200
    taken, _ = milliseconds(
        lambda: [(join(scores, others, out=scores), torch.add(scores, others, out=scores)) for _ in range(2 * rounds)]
    )
    return taken / rounds * num_states / _CACHED


def alignment(bank: PronunciationBank, num_frames: int, rounds: int) -> list[dict[str, Any]]:
    """200 candidates of one 3 s clip, each way in turn."""
    rng = np.random.default_rng(0)
    rows = rng.choice(len(bank), min(NUM_CANDIDATES, len(bank)), replace=False)
    bank = bank.select(rows)
    log_probs_TC = simulated(rng.integers(1, bank.num_classes, num_frames // 5), bank.num_classes, rng)
    log_probs_BTC = log_probs_TC[None, :num_frames]
    pairs = Pairs.of_whole_clips(np.arange(len(bank)), np.zeros(len(bank), np.int64), np.array([num_frames]))
    peer = by_ctc_loss(bank)
    ways: dict[str, Callable[[], Any]] = {
        "forward_scores": lambda: forward_scores(log_probs_BTC, bank, pairs),
        "forward_scores(free=True)": lambda: forward_scores(log_probs_BTC, bank, pairs, free=True),
        "best_paths": lambda: best_paths(log_probs_BTC, bank, pairs),
        "best_paths(free=True)": lambda: best_paths(log_probs_BTC, bank, pairs, free=True),
        "torch ctc_loss": lambda: peer(log_probs_BTC[0]),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            taken[way].append(milliseconds(run)[0])
    states = (len(bank.classes_S) + len(bank)) * num_frames
    floors = {way: floor_ms(states, torch.maximum if "best" in way else torch.logaddexp) for way in ways}
    return [
        {"way": way, "ms": statistics.median(measured[1:]), "floor_ms": floors[way]} for way, measured in taken.items()
    ]


def searches(bank: PronunciationBank, peers: bool) -> dict[str, Search | None]:
    index = SoundIndex(bank.num_classes)
    index.add(bank)

    def ours(**settings: Any) -> Search:
        return lambda log_probs_TC: index.search(log_probs_TC, TOP, **settings).terms_K.tolist()

    ways: dict[str, Search | None] = {
        "sounds": ours(),
        "sounds, exact": ours(beam=None),
        "sounds, beam 20,000": ours(beam=20_000),
        "sounds, beam 1,000": ours(beam=1000),
        "sounds, free start and end": ours(free=True),
    }
    if peers:
        ways |= {"torch ctc_loss": by_ctc_loss(bank), "flashlight-text": by_flashlight(bank)}
    return ways


def search(bank: PronunciationBank, terms: list[str], clips: list[HeardClip], peers: bool) -> list[dict[str, Any]]:
    """All ways at each clip: time, and how often the right term is first, and among the first ten."""
    ways = searches(bank, peers)
    row_of = {term: row for row, term in enumerate(terms)}
    running = {way: run for way, run in ways.items() if run is not None}
    taken: dict[str, list[float]] = {way: [] for way in running}
    found: dict[str, list[list[int]]] = {way: [] for way in running}
    for clip in [clips[0], *clips]:
        for way, run in running.items():
            measured, rows = milliseconds(lambda run=run, clip=clip: run(clip.log_probs_TC))
            taken[way].append(measured)
            found[way].append(rows)
    gold = [row_of[clip.text] for clip in clips]
    num_frames = statistics.mean(len(clip.log_probs_TC) for clip in clips)
    build_ms, tree = milliseconds(lambda: PrefixTree.of(bank))
    rows = []
    for way in ways:
        row: dict[str, Any] = {"terms": len(bank), "way": way}
        if way in running:
            hits = found[way][1:]
            row |= {
                "median_ms": statistics.median(taken[way][1:]),
                "slowest_ms": max(taken[way][1:]),
                "recall_at_1": statistics.mean(each[:1] == [right] for each, right in zip(hits, gold, strict=True)),
                "recall_at_10": statistics.mean(right in each for each, right in zip(hits, gold, strict=True)),
            }
        if way == "sounds" or "beam" in way:
            row["of_exact"] = statistics.mean(
                len(set(each) & set(best)) / len(best)
                for each, best in zip(found[way][1:], found["sounds, exact"][1:], strict=True)
            )
        rows.append(row)
    floor = floor_ms(len(tree) * num_frames, torch.maximum)
    rows[0] |= {"build_ms": build_ms, "floor_ms": floor, "nodes": len(tree)}
    return rows


def report(aligned: list[dict[str, Any]], searched: list[dict[str, Any]], spelled: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], key: str, form: str) -> str:
        return format(row[key], form) if key in row else "–"

    first = table(
        [f"{NUM_CANDIDATES} candidates", "ms", "floor, ms"],
        [[row["way"], cell(row, "ms", ".1f"), cell(row, "floor_ms", ".1f")] for row in aligned],
    )
    second = table(
        ["terms", "way", "median ms", "slowest", "floor, all nodes", "R@1", "R@10", "of the exact ten"],
        [
            [f"{row['terms']:,}", row["way"], cell(row, "median_ms", ".1f"), cell(row, "slowest_ms", ".0f"),
             cell(row, "floor_ms", ".1f"), cell(row, "recall_at_1", ".2f"), cell(row, "recall_at_10", ".2f"),
             cell(row, "of_exact", ".3f")]
            for row in searched
        ],
    )  # fmt: skip
    third = table(
        ["decoder", "median ms", "slowest", "R@1"],
        [
            [row["way"], cell(row, "median_ms", ".0f"), cell(row, "slowest_ms", ".0f"), cell(row, "recall_at_1", ".2f")]
            for row in spelled
        ],
    )
    return f"{first}\n{second}\n{third}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--peer-terms", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=150, help="of the clip that candidates are aligned with")
    parser.add_argument("--emissions", type=Path, help="an .npz of a trained head's, in place of simulated ones")
    parser.add_argument("--spoken", type=int, default=20, help="terms that are spoken to the decoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "verification.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clips, alphabet = read_emissions(options.emissions) if options.emissions else ([], None)
    own = list(dict.fromkeys(clip.text for clip in clips))
    others = [term for term in real_terms(max(options.terms)) if term not in set(own)]
    terms, said, symbols = pronounced([*own, *others])
    aligned, searched = [], []
    for number in options.terms:
        bank = PronunciationBank.of_symbols(said[:number], alphabet or symbols)
        if not aligned:
            aligned = alignment(bank, options.frames, rounds=20)
        heard = clips or simulated_clips(terms, bank, options.clips)
        searched += search(bank, terms, heard, peers=number <= options.peer_terms)
    load = os.getloadavg()[0]  # of a machine that others use as well, times are upper bounds
    about = {
        "threads": options.threads,
        "load_average": load,
        "clips": len(clips) or options.clips,
        "simulated": not clips,
    }
    spelled = spelling(terms, options.spoken) if options.spoken else []
    results = about | {"alignment": aligned, "search": searched, "spelling": spelled}
    write_results(options.out, results, packages=["torch", "numpy", "espeakng-loader"])
    print(report(aligned, searched, spelled))


if __name__ == "__main__":
    main()
