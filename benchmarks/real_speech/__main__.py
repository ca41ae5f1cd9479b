"""Spoken-term retrieval on real speech: our model beside Whisper and a search, on clips neither was tuned on.

    python -m benchmarks.real_speech --model outputs/laptop --training-corpus packs/laptop
    python -m benchmarks.real_speech --model outputs/laptop --training-corpus packs/laptop --test-set ktuberling
    python -m benchmarks.real_speech --model outputs/laptop --test-set long
    python -m benchmarks.real_speech --model outputs/laptop --test-set libriphrase --corpus LibriPhrase

Clips that each say one term: a set of `judged_sets.py`, in all stages. Banks: their texts alone and among thousands of
other terms (`term_banks.py`). Baselines: `baselines.py`. Every stage keeps its result in the work folder, so that a
stage can be run again alone; `timing` wants a quiet machine. `report` writes the table, the JSON and the picture.

Terms inside longer speech (`long/`: long, earnings22) and pairs of a clip and a term (`alike/`: alike, libriphrase)
have the stages `baselines`, `model` and `report`.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import xxhash
from datasets import Dataset, load_dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.real_speech.alike.program import ALIKE, LIBRIPHRASE
from benchmarks.real_speech.baselines import BASELINES, Matcher
from benchmarks.real_speech.judged_sets import SHORT_WORDS, TEST_SETS, TestSet, is_test_text
from benchmarks.real_speech.long.program import EARNINGS22, LONG
from benchmarks.real_speech.report import write_report
from benchmarks.real_speech.term_banks import TermBanks, make_banks
from benchmarks.real_speech.verifying.answers import answers_in_banks, believed, index_of, ranks_of
from benchmarks.real_speech.whisper_transcripts import transcribe_all, whisper_base
from benchmarks.real_speech.work_folder import SetRun, WorkFolder
from benchmarks.results_json import RESULTS
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.evaluation.ranking import rank_of_gold, rank_of_gold_in_scores, recall_at_k
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.retrieval.looks.second_look import FIRST_STAGES, SecondLook
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.phonetics import get_phonemizer
from qwen_term_retrieval.text.spellings import MAX_TERM_WORDS, normalize_term
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms

logger = logging.getLogger("real_speech")

TIMED_BANK = "+10k"
NUM_TIMED, NUM_WARM_UP, NUM_THREADS = 60, 5, 2
_SCORE_BLOCK = 32


@dataclass
class Benchmark(WorkFolder):
    """The clips, the banks and the folder in which stages leave their results."""

    model_folder: Path
    training_corpus: Path
    results: Path = RESULTS
    test_set: TestSet = TEST_SETS["asterisk"]

    @functools.cached_property
    def rows(self) -> Dataset:
        if not (self.work / "pack" / "pack.json").is_file():
            pack_corpus(self.test_set.utterances(), self.work / "pack")
        return load_dataset(str(self.work / "pack"), split="test")

    @functools.cached_property
    def texts(self) -> list[str]:
        return list(self.rows["text"])

    @functools.cached_property
    def clips(self) -> list[NDArray[np.int16]]:
        return [clip.pcm for clip in self.rows["audio"]]

    @functools.cached_property
    def banks(self) -> TermBanks:
        return make_banks(self.texts, [*wordnet_terms(), *medical_terms()])

    @functools.cached_property
    def gold(self) -> list[list[int]]:
        return self.banks.gold_rows(self.texts)

    @property
    def is_short(self) -> NDArray[np.bool_]:
        return np.array([len(normalize_term(text).split()) <= SHORT_WORDS for text in self.texts])

    def bank_terms(self, name: str) -> list[str]:
        return [self.banks.terms[row] for row in self.banks.rows[name]]

    def transcripts(self) -> list[str]:
        return transcribe_all(whisper_base(), self.clips, self.work / "transcripts.json")


def fetch(bench: Benchmark) -> None:
    sizes = {name: len(rows) for name, rows in bench.banks.rows.items()}
    logger.info(
        "%s: %d clips, %d of at most %d words; banks %s",
        *(bench.test_set.name, len(bench.clips), sum(bench.is_short), SHORT_WORDS, sizes),
    )


def check_training_texts(bench: Benchmark) -> None:
    """Stop unless no text and no term of the training corpus is one of a test set's texts."""
    corpus = bench.training_corpus
    texts = list(training_texts(corpus))
    leaked = sorted({text for text in texts if text and is_test_text(text)})
    if leaked:
        raise ValueError(f"{corpus} holds {len(leaked)} texts of the test sets, such as {leaked[:5]}")
    bench.save("training_texts", {"checked": len(texts), "leaked": 0})
    logger.info("%d training texts checked: none is a text of a test set", len(texts))


def training_texts(corpus: Path) -> Iterator[str]:
    """Texts and terms of every row of a pack or of any corpus that `read_corpus` reads."""
    if (corpus / "pack.json").is_file():
        for path in sorted(corpus.glob("*.parquet")):
            for row in pq.read_table(path, columns=["text", "terms"]).to_pylist():
                yield from (row["text"], *row["terms"])
    else:
        for utterance in read_corpus(corpus):
            yield from (utterance.text, *utterance.terms)


def run_baselines(bench: Benchmark) -> None:
    transcripts = bench.transcripts()
    for name, make_matcher in BASELINES.items():
        inputs = xxhash.xxh3_128_hexdigest(json.dumps([transcripts, bench.banks.terms]).encode())
        if bench.has(f"ranks {name}") and bench.load(f"ranks {name}")["inputs"] == inputs:
            logger.info("%s: kept from an earlier run on the same transcripts and terms", name)
            continue
        measures = try_measures(bench, make_matcher, transcripts)
        best = max(measures, key=lambda measure: [measures[measure][f"R@{k}"] for k in (10, 1)])
        logger.info("%s: best measure at %s is %s of %s", name, TIMED_BANK, best, measures)
        ranks = rank_everywhere(bench, make_matcher(bench.banks.terms), best, transcripts, name)
        bench.save(f"ranks {name}", {"inputs": inputs, "measure": best, "measures": measures, "ranks": ranks})


def try_measures(
    bench: Benchmark, make_matcher: Callable[[Sequence[str]], Matcher], transcripts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Recall@1 and @10 of each measure on the short clips at `TIMED_BANK`."""
    matcher = make_matcher(bench.bank_terms(TIMED_BANK))
    short = np.flatnonzero(bench.is_short).tolist()
    gold = [bench.gold[row] for row in short]
    recalls = {}
    for measure in matcher.measures:
        ranks = rank_of_gold_in_scores(matcher.scores([transcripts[row] for row in short], measure), gold)
        recalls[measure] = {f"R@{k}": round(recall_at_k(ranks, k), 4) for k in (1, 10)}
    return recalls


def rank_everywhere(
    bench: Benchmark, matcher: Matcher, measure: str, transcripts: Sequence[str], label: str
) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {name: [] for name in bench.banks.rows}
    for first in tqdm(range(0, len(transcripts), _SCORE_BLOCK), desc=label, unit="block"):
        block = slice(first, first + _SCORE_BLOCK)
        scores_QN = matcher.scores(transcripts[block], measure)
        for name, rows in bench.banks.rows.items():
            ranks[name] += rank_of_gold_in_scores(scores_QN[:, rows], bench.gold[block]).tolist()
    return ranks


def run_model(bench: Benchmark) -> None:
    """Ranks by the windows' cosines; and of a model that verifies, those of what it says, with precision."""
    retriever = TermRetriever.from_pretrained(bench.model_folder, device="cpu")
    model = retriever.model
    audio = model.encode_audio(bench.clips, show_progress=True)
    terms_ND = model.encode_terms(bench.banks.terms, show_progress=True)
    ranks = {
        name: ranks_by_windows(audio, terms_ND[torch.from_numpy(rows)], bench.gold)
        for name, rows in bench.banks.rows.items()
    }
    if retriever.verifier is None:
        bench.save("ranks ours", {"ranks": ranks})
        return
    bench.save("ranks windows", {"ranks": ranks})
    index = index_of(retriever, bench.banks.terms)
    for stage in FIRST_STAGES:
        retriever.second_look = SecondLook(model, stage)
        answers = answers_in_banks(retriever, index, bench.banks.rows, bench.clips)
        kept = {"ranks": ranks_of(answers, bench.gold, bench.banks.rows)}
        kept["believed"] = {name: believed(found, bench.gold, bench.is_short) for name, found in answers.items()}
        bench.save("ranks ours" if stage == "windows" else f"ranks first {stage}", kept)


def ranks_by_windows(audio: AudioEmbeddings, bank_ND: torch.Tensor, gold: list[list[int]]) -> list[int]:
    """Clips of like length together: a long one has hundreds of windows, and short ones would be padded to them."""
    num_windows = audio.mask.sum(dim=1)
    ranks = np.zeros(len(gold), np.int64)
    for block in num_windows.argsort().split(_SCORE_BLOCK):
        widest = int(num_windows[block].max())
        vectors, mask = audio.vectors[block, :widest], audio.mask[block, :widest]
        ranks[block.numpy()] = rank_of_gold(vectors, bank_ND, [gold[row] for row in block.tolist()], window_mask=mask)
    return ranks.tolist()


def run_timing(bench: Benchmark) -> None:
    """Seconds from PCM to the ten best terms at `TIMED_BANK`, one clip at a time, on `NUM_THREADS` threads.

    Ours is `TermRetriever.search`, as a user calls it, spans of the terms included. What can be prepared is not timed:
    models are loaded, terms are encoded, phonemised and spelled out.
    """
    torch.set_num_threads(NUM_THREADS)
    short = np.flatnonzero(bench.is_short)
    rows = np.random.default_rng(0).choice(short, size=min(NUM_TIMED, len(short)), replace=False)
    clips = [np.array(bench.clips[row]) for row in rows]
    terms = bench.bank_terms(TIMED_BANK)

    seconds = {"ours": _time_each(_our_search(bench.model_folder, terms), clips, "ours")}
    transcriber = whisper_base()
    listening = seconds["Whisper transcript alone"] = _time_each(transcriber.transcribe, clips, "Whisper")
    transcripts = [transcriber.transcribe(pcm) for pcm in clips]
    for name, make_matcher in BASELINES.items():
        search = functools.partial(_match, make_matcher(terms), bench.load(f"ranks {name}")["measure"])
        searching = _time_each(search, transcripts, name)
        seconds[name] = [heard + found for heard, found in zip(listening, searching, strict=True)]
    summary = {
        name: {"median": float(np.median(values)), "mean": float(np.mean(values))} for name, values in seconds.items()
    }
    bench.save("timing", {"clips": len(clips), "threads": NUM_THREADS, "bank": TIMED_BANK, "seconds": summary})
    for name, row in summary.items():
        logger.info("%s: median %.3f s, mean %.3f s a clip", name, row["median"], row["mean"])


def _match(matcher: Matcher, measure: str, transcript: str) -> NDArray[np.int64]:
    return _top_ten(matcher.scores([transcript], measure)[0])


def _our_search(model: Path, terms: list[str]) -> Callable[[NDArray[np.int16]], list[TermMatch]]:
    retriever = TermRetriever.from_pretrained(model, device="cpu")
    # A few prompts are whole speeches, which no glossary takes.
    retriever.index([term for term in terms if len(term.split()) <= MAX_TERM_WORDS])
    lowest = -1.0 if retriever.verifier is None else 0.0
    return functools.partial(retriever.search, top_k=10, threshold=lowest, sampling_rate=SAMPLING_RATE)


def _top_ten(scores_N: NDArray[np.float32]) -> NDArray[np.int64]:
    best = np.argpartition(-scores_N, 10)[:10]
    return best[np.argsort(-scores_N[best])]


def _time_each(function: Callable[[Any], Any], inputs: Sequence[Any], label: str) -> list[float]:
    for item in inputs[:NUM_WARM_UP]:
        function(item)
    seconds = []
    for item in tqdm(inputs, desc=f"timing {label}", unit="clip"):
        start = time.perf_counter()
        function(item)
        seconds.append(time.perf_counter() - start)
    return seconds


def report(bench: Benchmark) -> None:
    verified = [name for name in ("windows", "first sounds", "first both") if bench.has(f"ranks {name}")]
    systems = {name: bench.load(f"ranks {name}") for name in ("ours", *verified, "fuzzy", "IPA", "MiniLM")}
    print(
        write_report(
            bench.results,
            bench.test_set,
            systems=systems,
            timing=bench.load("timing"),
            training_texts=bench.load("training_texts"),
            is_short=bench.is_short,
            has_homophone={name: has_homophone(bench, name) for name in bench.banks.rows},
            bank_sizes={name: len(rows) for name, rows in bench.banks.rows.items()},
        )
    )


def has_homophone(bench: Benchmark, bank: str) -> NDArray[np.bool_]:
    """Whether another term of the bank has just a clip's phonemes, for each: no model of sound can tell them apart."""
    sounds = [tuple(phonemes) for phonemes in get_phonemizer("espeak:en-us").phonemes(bench.bank_terms(bank))]
    count_of, sound_of = Counter(sounds), dict(zip(bench.banks.rows[bank], sounds, strict=True))
    return np.array([any(count_of[sound_of[row]] > 1 for row in rows if row in sound_of) for rows in bench.gold])


STAGES: dict[str, Callable[[Benchmark], None]] = {
    "fetch": fetch,
    "train-texts-check": check_training_texts,
    "baselines": run_baselines,
    "model": run_model,
    "timing": run_timing,
    "report": report,
}


OTHER_SETS: dict[str, dict[str, Callable[[SetRun], None]]] = {
    "long": LONG,
    "alike": ALIKE,
    "libriphrase": LIBRIPHRASE,
    "earnings22": EARNINGS22,
}
FROM_A_FOLDER = ("libriphrase", "earnings22")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a trained TermRetrievalModel")
    parser.add_argument("--training-corpus", type=Path, help="pack or corpus that the model was trained on")
    parser.add_argument("--test-set", choices=[*TEST_SETS, *OTHER_SETS], default="asterisk", help="(default asterisk)")
    parser.add_argument("--corpus", type=Path, help="folder of libriphrase or of earnings22")
    parser.add_argument("--work", type=Path, help="folder of stage results (default outputs/real_speech/TEST_SET)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage (may be repeated)")
    options = parser.parse_args(arguments)
    stages: Mapping[str, Callable[[Any], None]] = OTHER_SETS.get(options.test_set, STAGES)
    chosen = options.stage or list(stages)
    # Before the first stage, not after an hour of them.
    if unknown := set(chosen) - set(stages):
        parser.error(f"{options.test_set} has no stage {', '.join(sorted(unknown))}; it has {', '.join(stages)}")
    if options.model is None and {"model", "timing"} & set(chosen):
        parser.error("give --model: the folder of a trained TermRetrievalModel")
    if options.training_corpus is None and "train-texts-check" in chosen:
        parser.error("give --training-corpus: what the model was trained on, to check it for texts of the test set")
    if options.corpus is None and options.test_set in FROM_A_FOLDER:
        parser.error(f"give --corpus: the folder of {options.test_set}, which no package registry carries")
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    work = options.work or Path("outputs/real_speech") / options.test_set
    run: SetRun | Benchmark
    if options.test_set in OTHER_SETS:
        run = SetRun(work, options.model, options.corpus, options.results)
    else:
        run = Benchmark(work, options.model, options.training_corpus, options.results, TEST_SETS[options.test_set])
    for name in chosen:
        logger.info("stage %s", name)
        stages[name](run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
