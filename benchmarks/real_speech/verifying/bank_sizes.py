"""Which way in finds more, and how fast, among a thousand to a million terms: windows, sounds, or both.

    python -m benchmarks.real_speech.verifying.bank_sizes [--model default] [--test-set ktuberling]

Clips of at most four words of each set of real speech. Banks up to +100k are those of the other benchmarks, WordNet and
medical words; of +1M the rest are places, terms of computing and stretches of two to ten words that WordNet quotes.
What a way in proposes is listened to again, unless the row says that windows alone answer. Times are of whole
searches, encoder included, one clip at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import table
from benchmarks.real_speech.__main__ import Benchmark
from benchmarks.real_speech.judged_sets import SHORT_WORDS, TEST_SETS
from benchmarks.real_speech.term_banks import TermBanks, distinct_terms, make_banks
from benchmarks.real_speech.verifying.answers import index_of, parts_of, ranks_of
from benchmarks.results_json import RESULTS, write_results
from benchmarks.verification.terms import real_terms
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.evaluation.ranking import recall_at_k
from qwen_term_retrieval.retrieval.looks.first_look import NUM_CANDIDATES
from qwen_term_retrieval.retrieval.looks.second_look import FIRST_STAGES, SecondLook
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms

SIZES = {"+1k": 1_000, "+10k": 10_000, "+100k": 100_000}
MILLION = 1_000_000
BANKS = (*SIZES, "+1M")


def banks_of(texts: Sequence[str]) -> TermBanks:
    """The clips' own texts among so many others; a smaller bank lies within a larger."""
    usual = make_banks(texts, [*wordnet_terms(), *medical_terms()], SIZES, hard=False)
    # Word lists hold spellings that `distinct_terms` takes for one.
    more = distinct_terms(real_terms(round(MILLION * 1.02)), unlike=usual.terms)
    terms = [*usual.terms, *more][: usual.num_own + MILLION]
    return TermBanks(terms, {**usual.rows, "+1M": np.arange(len(terms))}, usual.num_own)


def judge(bench: Benchmark, retriever: TermRetriever) -> dict[str, Any]:
    """Recall and milliseconds of each way in, in each bank."""
    short = np.flatnonzero(bench.is_short)
    clips = [bench.clips[row] for row in short]
    banks = banks_of(bench.texts)
    gold_of_all = banks.gold_rows(bench.texts)
    gold = [gold_of_all[row] for row in short]
    print(f"{bench.test_set.name}: indexing {len(banks.terms):,} terms, about five minutes", flush=True)
    started = time.perf_counter()
    index = index_of(retriever, banks.terms)
    found: dict[str, Any] = {"n": len(clips), "terms": len(index), "s to index": round(time.perf_counter() - started)}
    for bank, part in parts_of(index, banks.rows).items():
        for way in ("windows alone", *FIRST_STAGES):
            retriever.second_look = None if way == "windows alone" else SecondLook(retriever.model, way)  # type: ignore[arg-type]
            answers, seconds = [], []
            for clip in clips:
                started = time.perf_counter()
                answers += retriever.nearest_in(
                    [part], [clip], top_k=NUM_CANDIDATES, sampling_rate=SAMPLING_RATE, show_progress=False
                )[0]
                seconds.append(time.perf_counter() - started)
            ranks = np.array(ranks_of({bank: answers}, gold, banks.rows)[bank])
            row = {f"R@{k}": round(recall_at_k(ranks, k), 4) for k in (1, 10)}
            row["ms"] = round(1000 * statistics.median(seconds), 1)
            found.setdefault(bank, {})[way] = row
            print(bench.test_set.name, bank, way, row, flush=True)
    return found


def report(name: str, found: dict[str, Any]) -> str:
    """A row of each way in, a column of each bank."""
    rows = [
        [way, *("{R@1:.3f} / {R@10:.3f}, {ms:.0f} ms".format(**found[bank][way]) for bank in BANKS)]
        for way in found[BANKS[0]]
    ]
    head = f"**{name}: {found['speakers']}, n = {found['n']}**, R@1 / R@10, median of a whole search"
    return f"{head}\n\n{table(['proposed by', *BANKS], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="a shipped model, or a folder of one with a verifier")
    parser.add_argument("--test-set", choices=TEST_SETS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.test_set or TEST_SETS:
        retriever = TermRetriever.from_pretrained(options.model, verify="sounds", device="cpu")
        work = Path("outputs/real_speech") / name
        bench = Benchmark(work, Path(options.model), Path("packs/laptop"), test_set=TEST_SETS[name])
        found = {"speakers": TEST_SETS[name].speakers} | judge(bench, retriever)
        about = {"model": options.model, "threads": options.threads, "words": f"at most {SHORT_WORDS}"}
        path = RESULTS / f"bank_sizes_{name}.json"
        write_results(path, about | found, packages=("torch", "transformers", "numpy"))
        path.with_suffix(".md").write_text(report(name, found), encoding="utf-8")
        print(report(name, found))


if __name__ == "__main__":
    main()
