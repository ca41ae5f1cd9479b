"""How often a term is told that nobody said, an hour of speech without terms, and how many of those said are found.

    python -m benchmarks.real_speech.false_alarms --model qwen_term_retrieval/shipped/base

Bank: the texts of at most four words of both test sets and 10,000 others. Terms are said in the clips of the two sets
(`judged_sets.py`). Speech without terms: the studio's prompts of more than four words, and an hour of volunteers who
describe pictures in ten other languages, whom nobody made the bank for. A term of the bank that is said there after
all, by the letters of a run of words, counts neither for nor against. A term counts once a clip.

Nothing is chosen here: verifier and threshold are the model's. It writes `false_alarms[_NAME].{json,md}`.
"""

from __future__ import annotations

import argparse
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
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
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


def alarms(found: Sequence[Sequence[TermMatch]], clips: Clips) -> NDArray[np.float64]:
    """The probability of each answer that was not said."""
    wrong = []
    for matches, (_, text) in zip(found, clips, strict=True):
        said = {letters_of(run) for run in spoken_spellings(text, max_words=_LONGEST_RUN)}
        wrong += [match.confidence for match in matches if letters_of(match.term) not in said]
    return np.array(wrong)


def right_answers(found: Sequence[Sequence[TermMatch]], clips: Clips) -> NDArray[np.float64]:
    """The probability of what each clip says, 0 where it is no answer."""
    return np.array(
        [
            max((match.confidence for match in matches if letters_of(match.term) == letters_of(text)), default=0.0)
            for matches, (_, text) in zip(found, clips, strict=True)
        ]
    )


def judge(model: Path, hours: float) -> dict[str, Any]:
    terms, others = clips_of_terms(), speech_without_terms(hours)
    own = list(dict.fromkeys(text for clips in terms.values() for _, text in clips))
    banks = make_banks(own, [*wordnet_terms(), *medical_terms()], {"bank": NUM_OTHERS}, hard=False)
    retriever = TermRetriever.from_pretrained(model, device="cpu")
    if (verifier := retriever.verifier) is None:
        raise ValueError("the model has no verifier: `qtr calibrate` fits one")
    index = retriever.index(banks.terms)

    def hear(clips: Clips) -> list[list[TermMatch]]:
        return retriever.nearest_in([index], [pcm for pcm, _ in clips], top_k=_TOP_K, sampling_rate=SAMPLING_RATE)[0]

    right = {name: right_answers(hear(clips), clips) for name, clips in terms.items()}
    found: dict[str, Any] = {"bank": len(index), "threshold": round(verifier.threshold, 3), "speech": {}}
    found["clips of terms"] = {name: len(clips) for name, clips in terms.items()}
    for where, clips in others.items():
        wrong = np.sort(alarms(hear(clips), clips))[::-1]
        heard = sum(len(pcm) for pcm, _ in clips) / SAMPLING_RATE / 3600
        allowed = int(ALLOWED_AN_HOUR * heard)
        # Just above the first alarm that is one too many.
        at_ten = float(np.nextafter(wrong[allowed], 1)) if len(wrong) > allowed else 0.0
        sets = {}
        for name, sure in right.items():
            at_recall = float(np.quantile(sure, 1 - WANTED_RECALL, method="lower"))
            sets[name] = {
                "recall at ten an hour": float((sure >= at_ten).mean()),
                "recall at the stored threshold": float((sure >= verifier.threshold).mean()),
                "alarms an hour at recall 0.8": float((wrong >= at_recall).sum() / heard),
            }
        stored = float((wrong >= verifier.threshold).sum() / heard)
        found["speech"][where] = {
            "hours": round(heard, 3),
            "clips": len(clips),
            "threshold for ten an hour": at_ten,
            "alarms an hour at the stored threshold": stored,
            "recall": sets,
        }
    return found


def as_table(found: dict[str, Any]) -> str:
    rows = []
    for where, of in found["speech"].items():
        for name, recall in of["recall"].items():
            rows.append(
                [
                    f"{where}, {of['hours']:.2f} h",
                    f"{name}, n = {found['clips of terms'][name]}",
                    f"{of['alarms an hour at the stored threshold']:.1f}",
                    *(f"{recall[each]:.3f}" for each in ("recall at the stored threshold", "recall at ten an hour")),
                    f"{of['threshold for ten an hour']:.2f}",
                    f"{recall['alarms an hour at recall 0.8']:.1f}",
                ]
            )
    head = [
        "speech without terms", "terms said in", "alarms an hour at the stored threshold", "recall there",
        "recall at ten alarms an hour", "threshold there", "alarms an hour at recall .8",
    ]  # fmt: skip
    return f"Bank: {found['bank']:,} terms; stored threshold {found['threshold']}.\n\n" + table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with a verifier")
    parser.add_argument("--name", help="of the model, in the names of the results: of another than the default one")
    parser.add_argument("--hours", type=float, default=1.0, help="of other languages")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = judge(options.model, options.hours)
    path = RESULTS / f"{'_'.join(filter(None, ('false_alarms', options.name)))}.json"
    write_results(path, found, packages=("torch", "transformers", "numpy"))
    path.with_suffix(".md").write_text(as_table(found) + "\n", encoding="utf-8")
    print(as_table(found))


if __name__ == "__main__":
    main()
