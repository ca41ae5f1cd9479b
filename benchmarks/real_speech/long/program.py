"""The stages of `--test-set long` and `--test-set earnings22`: the peer, the model, the report.

    baselines   transcripts by Whisper-base, searched by spelling and by sound: `spotting fuzzy.json`, `… IPA.json`
    model       `TermRetriever` with each bank: `spotting ours.json`
    report      `results/real_speech_<set>.{json,md}` of whichever of the two have run

Of the measures of a baseline, the one with the highest average precision on these very clips at +10k is reported,
which favours the baseline. The model's threshold is the one stored with it; of one that hears sounds, span errors are
measured too, against the times of `forced_times.py`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.real_speech.baselines import BASELINES
from benchmarks.real_speech.long.earnings22 import earnings22_set
from benchmarks.real_speech.long.forced_times import ForcedTimes, with_times
from benchmarks.real_speech.long.judging import numbers
from benchmarks.real_speech.long.prompts import long_banks, long_sets
from benchmarks.real_speech.long.recordings import Recording, SearchedSet
from benchmarks.real_speech.long.report import write_report
from benchmarks.real_speech.long.transcript_search import best_scores, nearest_terms
from benchmarks.real_speech.term_banks import TermBanks
from benchmarks.real_speech.whisper_transcripts import transcribe_all, whisper_base
from benchmarks.real_speech.work_folder import SetRun
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

logger = logging.getLogger("real_speech")

# A sentence embedding of a run of words is the weakest search of the three on whole prompts, and the slowest.
SEARCHES = ("fuzzy", "IPA")
# It looks for parts of what is already a part, at a hundred times the cost.
NOT_TRIED = ("WRatio",)
CHOSEN_AT = "+10k"
ANSWERS = 200  # a clip or a place: far more than are said in it
ANSWERS_A_HOP, HOP_SECONDS = 100, 5.0


@dataclass(frozen=True)
class Assembled:
    """What is searched and for what; the first of `sets` is the one that a baseline's measure is chosen on."""

    sets: list[SearchedSet]
    banks: TermBanks

    def bank_terms(self, bank: str) -> list[str]:
        return [self.banks.terms[row] for row in self.banks.rows[bank]]

    def facts(self) -> dict[str, dict[str, object]]:
        return {searched.name: searched.facts() for searched in self.sets}


def assemble_long(_run: SetRun) -> Assembled:
    sets, glossary = long_sets()
    return Assembled(sets, long_banks(glossary, [place.text for searched in sets for place in searched.places]))


def assemble_earnings22(run: SetRun) -> Assembled:
    if run.corpus is None:
        raise ValueError("give --corpus: the folder of Contextual Earnings-22")
    clips, glossary = earnings22_set(run.corpus)
    return Assembled([clips], long_banks(glossary, [place.text for place in clips.places]))


def run_baselines(assemble: Callable[[SetRun], Assembled], run: SetRun) -> None:
    assembled = assemble(run)
    transcripts = transcribe_sets(assembled.sets, run)
    for name in SEARCHES:
        measures = try_measures(assembled, transcripts, name)
        best = max(measures, key=measures.__getitem__)
        logger.info("%s: best measure at %s is %s of %s", name, CHOSEN_AT, best, measures)
        found = search_every_bank(assembled, transcripts, name, best)
        run.save(f"spotting {name}", {"measure": best, "measures": measures, "numbers": found})


def try_measures(assembled: Assembled, transcripts: dict[str, list[str]], name: str) -> dict[str, float]:
    """Average precision of each measure on the first set at `CHOSEN_AT`."""
    first, terms = assembled.sets[0], assembled.bank_terms(CHOSEN_AT)
    matcher = BASELINES[name](terms)
    measures = {}
    for measure in (each for each in matcher.measures if each not in NOT_TRIED):
        best_QN = best_scores(matcher, terms, transcripts[first.name], measure, f"{name}, {measure}")
        answers = search_transcripts(first, best_QN, terms)
        measures[measure] = round(numbers(first, answers, None)["average_precision"], 4)
    return measures


def transcribe_sets(sets: Sequence[SearchedSet], run: SetRun) -> dict[str, list[str]]:
    """A transcript of every place of every set; a clip that is in two sets is heard once."""
    transcriber = whisper_base()
    clips = {
        searched.name: [recording.pcm_of(place) for recording in searched.recordings for place in recording.places]
        for searched in sets
    }
    return {name: transcribe_all(transcriber, pcm, run.work / "transcripts.json") for name, pcm in clips.items()}


def search_every_bank(
    assembled: Assembled, transcripts: dict[str, list[str]], name: str, measure: str
) -> dict[str, dict[str, dict[str, float]]]:
    """set → bank → numbers; every transcript is scored once, against the terms of all banks."""
    distinct = list(dict.fromkeys(text for texts in transcripts.values() for text in texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    terms = assembled.banks.terms
    scores_QN = best_scores(BASELINES[name](terms), terms, distinct, measure, f"{name}, all banks")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for searched in assembled.sets:
        places = [row_of[text] for text in transcripts[searched.name]]
        found[searched.name] = {
            bank: numbers(
                searched,
                search_transcripts(searched, scores_QN[places][:, rows], assembled.bank_terms(bank)),
                None,
            )
            for bank, rows in assembled.banks.rows.items()
        }
    return found


def search_transcripts(
    searched: SearchedSet, scores_QN: NDArray[np.float32], terms: Sequence[str]
) -> list[list[TermMatch]]:
    """The answers to each recording from the scores of its places, all places of all recordings in a row."""
    rows = iter(scores_QN)
    return [
        [match for place in recording.places for match in nearest_terms(next(rows), terms, place, ANSWERS)]
        for recording in searched.recordings
    ]


def run_model(assemble: Callable[[SetRun], Assembled], run: SetRun) -> None:
    assembled = assemble(run)
    if run.model_folder is None:
        raise ValueError("give --model: the folder of a trained TermRetrievalModel")
    retriever = TermRetriever.from_pretrained(run.model_folder)
    sets = assembled.sets
    if retriever.model.phoneme_head is not None:
        times = ForcedTimes(retriever.model)
        sets = [with_times(searched, times) for searched in tqdm(sets, desc="times of terms", unit="set")]
    indexes: dict[str, TermIndex] = {}
    found: dict[str, dict[str, dict[str, float]]] = {searched.name: {} for searched in sets}
    for bank in assembled.banks.rows:
        indexes[bank] = retriever.index(assembled.bank_terms(bank))
        for searched in (each for each in sets if each.joined):
            answers = hear_streams(retriever, searched.recordings)
            found[searched.name][bank] = numbers(searched, answers, retriever.threshold)
    for searched in (each for each in sets if not each.joined):
        for bank, answers in zip(indexes, hear(retriever, list(indexes.values()), searched), strict=True):
            found[searched.name][bank] = numbers(searched, answers, retriever.threshold)
    logger.info("%s", found)
    run.save("spotting ours", {"numbers": found})


def hear(retriever: TermRetriever, indexes: Sequence[TermIndex], searched: SearchedSet) -> list[list[list[TermMatch]]]:
    """The answers of each index to each clip; a clip is encoded once."""
    clips = [recording.pcm for recording in searched.recordings]
    return retriever.nearest_in(indexes, clips, top_k=ANSWERS, sampling_rate=SAMPLING_RATE)


def hear_streams(retriever: TermRetriever, recordings: Sequence[Recording]) -> list[list[TermMatch]]:
    """Each recording as a stream of which every match is taken: a term counts each time that it is answered."""
    threshold = accept_all(retriever)
    return [
        list(retriever.stream([recording.pcm], threshold=threshold, top_k=ANSWERS_A_HOP, hop_seconds=HOP_SECONDS))
        for recording in tqdm(recordings, desc="streams", unit="recording")
    ]


def accept_all(retriever: TermRetriever) -> float:
    """The lowest probability, or cosine of a model that verifies nothing."""
    return -1.0 if retriever.verifier is None else 0.0


def report(name: str, assemble: Callable[[SetRun], Assembled], run: SetRun) -> None:
    systems = run.load_all([f"spotting {system}" for system in (*SEARCHES, "ours")])
    assembled = assemble(run)
    sizes = {bank: len(rows) for bank, rows in assembled.banks.rows.items()}
    print(write_report(run.results, name, systems=systems, facts=assembled.facts(), bank_sizes=sizes))


def stages(name: str, assemble: Callable[[SetRun], Assembled]) -> dict[str, Callable[[SetRun], None]]:
    return {
        "baselines": functools.partial(run_baselines, assemble),
        "model": functools.partial(run_model, assemble),
        "report": functools.partial(report, name, assemble),
    }


LONG = stages("long", assemble_long)
EARNINGS22 = stages("earnings22", assemble_earnings22)
