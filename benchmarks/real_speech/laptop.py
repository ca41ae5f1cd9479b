"""Make the corpora and train the models that are judged on real speech: those that ship, and one of many languages.

    python -m benchmarks.real_speech.laptop                              # `base`: English on Whisper-base
    python -m benchmarks.real_speech.laptop --models base tiny.en laptop

`base` and `tiny.en` learn from 16,000 synthetic English clips (`packs/english`), `laptop` from these and from 6,000 of
volunteers in other languages (`packs/laptop`). No clip says a text of a test set. A model is trained on the frames of
its frozen tower, then with LoRA in it, and its verifier is fitted on the validation clips: terms alone, terms in a
sentence, and sentences whose every content word and run of them is a term. Each stage is done once, and
a second run goes on where the first stopped. `outputs/laptop_stages.json` says how long each took, synthesis with what
was cached already.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.real_speech.asterisk import asterisk_texts
from benchmarks.real_speech.judged_sets import is_test_text
from benchmarks.real_speech.long.content_terms import content_terms
from benchmarks.real_speech.volunteers import tuxpaint_utterances
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.laptop import HELD_OUT_VOICES, make_laptop_corpus
from qwen_term_retrieval.synthesis.rendering import SpeechRequest
from qwen_term_retrieval.text.wordlists import (
    computing_terms,
    medical_terms,
    place_names,
    wordnet_examples,
    wordnet_terms,
)

CORPUS, SENTENCES = Path("outputs/laptop-corpus"), Path("outputs/laptop-sentences")
PACK, ENGLISH = Path("packs/laptop"), Path("packs/english")
BANK = Path("outputs/laptop-bank.txt")
BANK_TERMS = 60_000
NUM_SENTENCES = 240
HELD_OUT_LANGUAGE = "nl"
STAGES = Path("outputs/laptop_stages.json")
PACK_OF = {"base": ENGLISH, "tiny.en": ENGLISH, "laptop": PACK}


def synthesize() -> None:
    if not CORPUS.is_dir():
        make_laptop_corpus(CORPUS, exclude=asterisk_texts())


def say_sentences() -> None:
    """Sentences that WordNet quotes, by voices of Kokoro that no training clip has: what a term is among others."""
    if not SENTENCES.is_dir():
        rng = random.Random(0)
        rows = [
            CorpusRow(
                SpeechRequest("kokoro", rng.choice(HELD_OUT_VOICES), text, rng.choice((0.9, 1.0, 1.1))), "validation"
            )
            for text in rng.sample(quoted_sentences(12), NUM_SENTENCES)
        ]
        write_corpus(rows, SENTENCES, on_error="skip")


def quoted_sentences(most_words: int) -> list[str]:
    """Sentences of five words to so many that WordNet quotes, none a text of a test set."""
    return [text for text in wordnet_examples() if 5 <= len(text.split()) <= most_words and not is_test_text(text)]


def pack(into: Path) -> None:
    if not (into / "pack.json").is_file():
        summary = pack_corpus(training_utterances(other_languages=into == PACK), into)
        print(summary)


def training_utterances(*, other_languages: bool = True) -> Iterator[Utterance]:
    """Synthetic English, and what volunteers say in other languages, of whom one is kept for validation.

    A clip that says a text of a test set is left out: the corpus knows the prompts alone, and one spelling of each.
    """
    recorded = map(as_recorded, tuxpaint_utterances()) if other_languages else ()
    sentences = map(with_content_terms, read_corpus(SENTENCES))
    for each in itertools.chain(read_corpus(CORPUS), sentences, recorded):
        if not any(is_test_text(text) for text in (each.text, *each.terms)):
            yield each


def with_content_terms(utterance: Utterance) -> Utterance:
    terms = tuple(term for term in content_terms([utterance.text]) if not is_test_text(term))
    return dataclasses.replace(utterance, terms=terms, key=f"sentence/{utterance.key}")


def as_recorded(utterance: Utterance) -> Utterance:
    split = "validation" if utterance.language == HELD_OUT_LANGUAGE else "train"
    return dataclasses.replace(utterance, split=split, extra={"engine": "microphone", "kind": "description"})


def write_bank() -> None:
    """Terms that the text tower sees as wrong answers: a sample of word lists, without the texts of the test sets."""
    if not BANK.is_file():
        terms = [*wordnet_terms(), *medical_terms(), *computing_terms(), *place_names()]
        allowed = [term for term in terms if not is_test_text(term)]
        drawn = random.Random(0).sample(allowed, BANK_TERMS)
        BANK.write_text("".join(f"{term}\n" for term in drawn), encoding="utf-8")


def run_recipe(name: str) -> None:
    if not Path("outputs", name, "model.safetensors").is_file():
        flags = ["--recipe", name, "--glossary", str(BANK), "--resume"]
        subprocess.run([sys.executable, "scripts/train.py", *flags], check=True)


def stages_of(models: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "synthesize", synthesize
    yield "say sentences", say_sentences
    for into in dict.fromkeys(PACK_OF[name] for name in models):
        yield f"pack {into.name}", partial(pack, into)
    yield "write_bank", write_bank
    for name in models:
        yield f"train {name}", partial(run_recipe, name)
        yield f"tune the tower of {name}", partial(run_recipe, f"{name}_lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PACK_OF, default=["base"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seconds: dict[str, float] = json.loads(STAGES.read_text(encoding="utf-8")) if STAGES.is_file() else {}
    for name, stage in stages_of(options.models):
        print(f"== {name}", flush=True)
        started = time.monotonic()
        stage()
        seconds[name] = seconds.get(name, 0.0) + round(time.monotonic() - started, 1)
        STAGES.parent.mkdir(parents=True, exist_ok=True)
        STAGES.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
