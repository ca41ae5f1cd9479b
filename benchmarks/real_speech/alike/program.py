"""The stages of `--test-set alike` and `--test-set libriphrase`.

baselines   transcripts by Whisper-base and their likeness to each term: `alike fuzzy.json`, `alike IPA.json`
model       the cosine of the model; if it hears sounds, these, and as its verifier weighs them: `alike ours.json`
report      `results/real_speech_<set>.{json,md}` of whichever of the two have run
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from benchmarks.real_speech.alike.libriphrase import read_libriphrase
from benchmarks.real_speech.alike.pairs import ScoredClip, pairs_of_set, split_numbers
from benchmarks.real_speech.alike.report import write_report
from benchmarks.real_speech.alike.scorers import CosineScorer, Scorer, SoundScorer, TranscriptScorer, VerifierScorer
from benchmarks.real_speech.baselines import BASELINES
from benchmarks.real_speech.judged_sets import TEST_SETS
from benchmarks.real_speech.whisper_transcripts import transcribe_all, whisper_base
from benchmarks.real_speech.work_folder import SetRun
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.phonetics import get_phonemizer

logger = logging.getLogger("real_speech")

SEARCHES = ("fuzzy", "IPA")


@dataclass(frozen=True)
class PairedSet:
    """Clips with their terms; `speakers` describes who speaks in a few words."""

    speakers: str
    clips: list[ScoredClip]

    def facts(self) -> dict[str, object]:
        pairs = sum(len(clip.terms) for clip in self.clips)
        return {"speakers": self.speakers, "clips": len(self.clips), "pairs": pairs}


def real_sets(_run: SetRun) -> dict[str, PairedSet]:
    phonemizer = get_phonemizer("espeak:en-us")
    return {name: PairedSet(each.speakers, pairs_of_set(each, phonemizer)) for name, each in TEST_SETS.items()}


def libriphrase(run: SetRun) -> dict[str, PairedSet]:
    if run.corpus is None:
        raise ValueError("give --corpus: the folder of LibriPhrase")
    clips = read_libriphrase(run.corpus)
    readers = len({clip.speaker for clip in clips})
    return {"libriphrase": PairedSet(f"{readers} readers of LibriSpeech", clips)}


def run_baselines(assemble: Callable[[SetRun], dict[str, PairedSet]], run: SetRun) -> None:
    sets = assemble(run)
    clips = [clip for paired in sets.values() for clip in paired.clips]
    pcm = [clip.pcm() for clip in clips]
    transcripts = transcribe_all(whisper_base(), pcm, run.work / "transcripts.json")
    text_of = {samples.tobytes(): text for samples, text in zip(pcm, transcripts, strict=True)}
    for name in SEARCHES:
        found = {}
        for measure in BASELINES[name]([]).measures:
            scorer = TranscriptScorer(lambda samples: text_of[samples.tobytes()], BASELINES[name], measure)
            found[measure] = score_sets(sets, scorer, f"{name}, {measure}")
        areas = {measure: round(_hard_area(numbers), 4) for measure, numbers in found.items()}
        best = max(areas, key=areas.__getitem__)
        logger.info("%s: best measure on hard pairs is %s of %s", name, best, areas)
        run.save(f"alike {name}", {"measure": best, "measures": areas, "numbers": found[best]})


def _hard_area(numbers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float:
    """The mean over the sets; one without hard pairs is judged by its easy ones."""
    return float(np.mean([splits[list(splits)[-1]]["auc"] for splits in numbers.values()]))


def run_model(assemble: Callable[[SetRun], dict[str, PairedSet]], run: SetRun) -> None:
    if run.model_folder is None:
        raise ValueError("give --model: the folder of a trained TermRetrievalModel")
    sets, scorers = assemble(run), scorers_of(TermRetriever.from_pretrained(run.model_folder))
    found = {name: {"numbers": score_sets(sets, scorer, name)} for name, scorer in scorers.items()}
    run.save("alike ours", {"systems": found})


def scorers_of(retriever: TermRetriever) -> dict[str, Scorer]:
    """Each way in which the model can score a pair."""
    scorers: dict[str, Scorer] = {"ours": CosineScorer(retriever)}
    if retriever.model.phoneme_head is not None:
        scorers["ours by sounds"] = SoundScorer(retriever)
    if retriever.verifier is not None:
        scorers["ours verified"] = VerifierScorer(retriever)
    return scorers


def score_sets(sets: Mapping[str, PairedSet], scorer: Scorer, label: str) -> dict[str, dict[str, dict[str, float]]]:
    """set → split → numbers."""
    return {name: split_numbers(each.clips, score_clips(each.clips, scorer, label)) for name, each in sets.items()}


def score_clips(clips: Sequence[ScoredClip], scorer: Scorer, label: str) -> list[np.ndarray]:
    return [scorer(clip.pcm(), clip.terms) for clip in tqdm(clips, desc=label, unit="clip")]


def report(name: str, assemble: Callable[[SetRun], dict[str, PairedSet]], run: SetRun) -> None:
    systems = run.load_all([f"alike {system}" for system in (*SEARCHES, "ours")])
    ours = systems.pop("alike ours", {"systems": {}})["systems"]
    systems |= {f"alike {system}": numbers for system, numbers in ours.items()}
    facts = {each: paired.facts() for each, paired in assemble(run).items()}
    print(write_report(run.results, name, systems=systems, facts=facts))


def stages(name: str, assemble: Callable[[SetRun], dict[str, PairedSet]]) -> dict[str, Callable[[SetRun], None]]:
    return {
        "baselines": functools.partial(run_baselines, assemble),
        "model": functools.partial(run_model, assemble),
        "report": functools.partial(report, name, assemble),
    }


ALIKE = stages("alike", real_sets)
LIBRIPHRASE = stages("libriphrase", libriphrase)
