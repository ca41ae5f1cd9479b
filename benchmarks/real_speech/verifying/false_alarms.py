"""How often a term is told that nobody said, an hour of speech without terms, and how many of those said are found.

    python -m benchmarks.real_speech.verifying.false_alarms --model qwen_term_retrieval/shipped/base

Terms are said in the clips of at most four words of a test set (`judged_sets.py`); its bank are their texts and 10,000
others. Speech without terms: the studio's prompts of more than four words, and an hour of volunteers who describe
pictures in ten other languages, whom nobody made a bank for. A term that is said there after all, by the letters or the
sounds of a run of words, counts neither for nor against. A term counts once a clip.

Nothing is chosen here: verifier and threshold are the model's. It writes `false_alarms[_NAME].{json,md}`.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.markdown import table
from benchmarks.real_speech.asterisk import SAMPLING_RATE, read_prompts
from benchmarks.real_speech.judged_sets import SHORT_WORDS, TEST_SETS
from benchmarks.real_speech.spelling import letters_of
from benchmarks.real_speech.term_banks import make_banks
from benchmarks.real_speech.volunteers import tuxpaint_utterances
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.audio.decoding import clip_pcm
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.phonetics import get_phonemizer
from qwen_term_retrieval.text.spellings import normalize_term, spoken_spellings
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms

NUM_OTHERS = 10_000
ALLOWED_AN_HOUR = 10.0
WANTED_RECALL = 0.8
_TOP_K = 200
_LONGEST_RUN = 8
_SEED = 20261201

Clips = list[tuple[NDArray[np.int16], str]]
"""pcm, int16 at 16 kHz, and what is said."""


def clips_of_terms() -> dict[str, Clips]:
    """The clips of at most four words of each test set."""
    return {
        name: [
            (clip_pcm(utterance.audio, utterance.sampling_rate), utterance.text)
            for utterance in test_set.utterances()
            if len(normalize_term(utterance.text).split()) <= SHORT_WORDS
        ]
        for name, test_set in TEST_SETS.items()
    }


def speech_without_terms(hours: float) -> dict[str, Clips]:
    """The studio's long prompts, and so many hours of volunteers in other languages."""
    prompts = [prompt for prompt in read_prompts().prompts if prompt.num_words > SHORT_WORDS]
    utterances = list(tuxpaint_utterances())
    foreign: Clips = []
    seconds = 0.0
    for number in np.random.default_rng(_SEED).permutation(len(utterances)):
        if seconds >= hours * 3600:
            break
        pcm = clip_pcm(utterances[number].audio)
        seconds += len(pcm) / SAMPLING_RATE
        foreign.append((pcm, utterances[number].text))
    return {
        "studio, longer prompts": [(prompt.pcm(), prompt.text) for prompt in prompts],
        "volunteers, ten other languages": foreign,
    }


def alarms(found: Sequence[Sequence[TermMatch]], clips: Clips) -> list[tuple[float, str, str]]:
    """Each answer that was not said, the surest first: its probability, the term, and what was said."""
    wrong = []
    for matches, (_, text) in zip(found, clips, strict=True):
        runs = list(spoken_spellings(text, max_words=_LONGEST_RUN))
        said, sounds = set(map(letters_of, runs)), set(map(_sounds, runs))
        wrong += [
            (match.confidence, match.term, text)
            for match in matches
            if letters_of(match.term) not in said and _sounds(match.term) not in sounds
        ]
    return sorted(wrong, reverse=True)


@functools.cache
def _sounds(text: str) -> tuple[str, ...]:
    return tuple(get_phonemizer("espeak:en-us").phonemes([text])[0])


def right_answers(found: Sequence[Sequence[TermMatch]], clips: Clips) -> NDArray[np.float64]:
    """The probability of what each clip says, 0 where it is no answer."""
    return np.array(
        [
            max((match.confidence for match in matches if letters_of(match.term) == letters_of(text)), default=0.0)
            for matches, (_, text) in zip(found, clips, strict=True)
        ]
    )


def judge(model: Path, hours: float) -> list[dict[str, Any]]:
    """A row for each set of terms and each speech without them."""
    terms, others = clips_of_terms(), speech_without_terms(hours)
    retriever = TermRetriever.from_pretrained(model, device="cpu")
    if (verifier := retriever.verifier) is None:
        raise ValueError("the model has no verifier: `qtr calibrate` fits one")
    pool = [*wordnet_terms(), *medical_terms()]
    indexes = []
    for clips in terms.values():
        own = list(dict.fromkeys(text for _, text in clips))
        indexes.append(retriever.index(make_banks(own, pool, {"bank": NUM_OTHERS}, hard=False).terms))

    def hear(clips: Clips, own: Sequence[TermIndex]) -> list[list[list[TermMatch]]]:
        return retriever.nearest_in(own, [pcm for pcm, _ in clips], top_k=_TOP_K, sampling_rate=SAMPLING_RATE)

    right = [
        right_answers(hear(clips, [index])[0], clips) for clips, index in zip(terms.values(), indexes, strict=True)
    ]
    rows = []
    for speech, clips in others.items():
        heard = sum(len(pcm) for pcm, _ in clips) / SAMPLING_RATE / 3600
        allowed = int(ALLOWED_AN_HOUR * heard)
        for name, index, sure, found in zip(terms, indexes, right, hear(clips, indexes), strict=True):
            told = alarms(found, clips)
            wrong = np.array([probability for probability, *_ in told])
            # Just above the first alarm that is one too many.
            at_ten = float(np.nextafter(wrong[allowed], 1)) if len(wrong) > allowed else 0.0
            at_recall = float(np.quantile(sure, 1 - WANTED_RECALL, method="lower"))
            rows.append(
                {
                    "terms": name,
                    "bank": len(index),
                    "clips of terms": len(sure),
                    "speech": speech,
                    "hours": round(heard, 3),
                    "stored": {
                        "threshold": round(verifier.threshold, 3),
                        "recall": float((sure >= verifier.threshold).mean()),
                        "alarms an hour": float((wrong >= verifier.threshold).sum() / heard),
                    },
                    "ten an hour": {"threshold": at_ten, "recall": float((sure >= at_ten).mean())},
                    "recall .8": {"threshold": at_recall, "alarms an hour": float((wrong >= at_recall).sum() / heard)},
                    "surest": [(round(probability, 3), term, text) for probability, term, text in told[:10]],
                }
            )
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    head = [
        "terms said in", "bank", "speech without terms", "stored threshold: recall", "alarms an hour",
        "recall at ten alarms an hour", "alarms an hour at recall .8",
    ]  # fmt: skip
    return table(
        head,
        [
            [
                f"{row['terms']}, n = {row['clips of terms']}",
                f"{row['bank']:,}",
                f"{row['speech']}, {row['hours']:.2f} h",
                f"{row['stored']['threshold']:.3f}: {row['stored']['recall']:.3f}",
                f"{row['stored']['alarms an hour']:.1f}",
                f"{row['ten an hour']['recall']:.3f} ({row['ten an hour']['threshold']:.2f})",
                f"{row['recall .8']['alarms an hour']:.1f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with a verifier")
    parser.add_argument("--name", help="of the model, in the names of the results: of another than the default one")
    parser.add_argument("--hours", type=float, default=1.0, help="of other languages")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    found = judge(options.model, options.hours)
    path = RESULTS / f"{'_'.join(filter(None, ('false_alarms', options.name)))}.json"
    write_results(path, {"rows": found}, packages=("torch", "transformers", "numpy"))
    path.with_suffix(".md").write_text(as_table(found) + "\n", encoding="utf-8")
    print(as_table(found))


if __name__ == "__main__":
    main()
