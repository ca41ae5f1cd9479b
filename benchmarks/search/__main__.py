"""What a search of a large glossary costs, beside numpy and FAISS in the same run.

    python -m benchmarks.search --model MODEL                  # a million terms; some ten minutes on two quiet cores
    python -m benchmarks.search --model MODEL --only banks,changing
    python -m benchmarks.search --model MODEL --quick

Terms are those of the word lists and stretches of WordNet's example sentences, embedded with the model's own text
tower; windows are those of real speech, 97 a clip; *noise* is a bank without any structure. Writes
`results/search.{json,md}`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.search.banks import noise, opened_index, spoken_clips, windows_of
from benchmarks.search.holding import beside_writers, changing, making
from benchmarks.search.report import SECTIONS, report
from benchmarks.search.searches import measure
from benchmarks.sections import kept_sections, parsed, run_sections, section_parser
from qwen_term_retrieval.retrieval.retriever import TermRetriever

PACKAGES = ("qwen_term_retrieval", "torch", "numpy", "faiss-cpu", "usearch")
QUICK = {"terms": 40_000, "bank": 20_000, "clips": 3, "seconds": 2.0}


def arguments() -> argparse.Namespace:
    parser = section_parser(__doc__.splitlines()[0], tuple(SECTIONS), Path("outputs/search"))
    parser.add_argument("--model", required=True, help="whose text tower embeds, with a phoneme encoder")
    parser.add_argument("--terms", type=int, default=1_000_000)
    parser.add_argument("--bank", type=int, default=100_000, help="terms of the smaller bank")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--windows", type=int, default=97)
    parser.add_argument("--seconds", type=float, default=10.0, help="of searching beside writers, six times")
    return parsed(parser, tuple(SECTIONS), QUICK)


class Runs:
    """The sections, and what they share."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        self.retriever = TermRetriever.from_pretrained(options.model, verify="none")
        self.clips = spoken_clips(options.clips)
        self.windows = windows_of(self.retriever, self.clips, options.windows)

    def vectors(self, number: int) -> torch.Tensor:
        """Of the first so many terms of the large index."""
        return opened_index(self.retriever, self.options.terms, self.options.work).vectors_ND[:number]

    def making(self) -> dict[str, Any]:
        return making(self.options.model, self.options.terms, self.options.work)

    def banks(self) -> dict[str, Any]:
        options, dim = self.options, self.retriever.model.config.embedding_dim
        scrambled = [noise(len(windows), dim, seed) for seed, windows in enumerate(self.windows)]
        small, large = self.vectors(options.bank).clone(), self.vectors(options.terms)
        return {
            f"{options.bank:,}": measure(small, self.windows, ["float32", "int8", "ann"], with_faiss=True),
            f"{options.bank:,} of noise": measure(
                noise(options.bank, dim, 99), scrambled, ["float32", "int8"], with_faiss=False
            ),
            f"{options.terms:,}": measure(large, self.windows, ["int8"], with_faiss=False),
        }

    def changing(self) -> dict[str, Any]:
        opened_index(self.retriever, self.options.terms, self.options.work)
        return changing(self.options.work / f"index-{self.options.terms}", self.windows, self.options.work)

    def writers(self) -> dict[str, Any]:
        """The writers' terms are those that follow on the bank's."""
        bank = self.options.bank
        index = opened_index(self.retriever, self.options.terms, self.options.work)
        texts = [index.terms[place].text for place in range(bank, min(len(index), bank + 10_000))]
        return beside_writers(self.vectors(bank).clone(), texts, self.windows, self.options.seconds)

    def clip(self) -> list[dict[str, Any]]:
        """Samples to terms, and the search alone, among the terms of the smaller bank and a tenth of them."""
        bank = self.options.bank
        index = opened_index(self.retriever, self.options.terms, self.options.work)
        rows = []
        for dtype in ("float32", "bfloat16"):
            retriever = TermRetriever.from_pretrained(self.options.model, verify="none", dtype=dtype)
            for terms in (bank // 10, bank):
                retriever._index = index.select(range(terms))
                rows.append({"dtype": dtype, "terms": terms, **self._clip_times(retriever)})
        return rows

    def _clip_times(self, retriever: TermRetriever) -> dict[str, float]:
        whole, search = [], []
        for clip in [self.clips[0], *self.clips]:
            began = time.perf_counter()
            retriever.search(clip, sampling_rate=16_000)
            whole.append(time.perf_counter() - began)
            encoded = retriever.encoder.encode([clip], sampling_rate=16_000)
            began = time.perf_counter()
            retriever.term_index.search(encoded.vectors, 10, mask_BW=encoded.mask)
            search.append(time.perf_counter() - began)
        # The first warms up.
        return {"whole_ms": statistics.median(whole[1:]) * 1e3, "search_ms": statistics.median(search[1:]) * 1e3}


def main() -> None:
    options = arguments()
    path = options.results / "search.json"
    settings = {
        "terms": options.terms,
        "bank": options.bank,
        "windows": options.windows,
        "threads": torch.get_num_threads(),
    }
    results = kept_sections(path, settings, SECTIONS)
    runs = Runs(options)
    run_sections(path, results, {name: getattr(runs, name) for name in options.sections}, report, packages=PACKAGES)


if __name__ == "__main__":
    main()
