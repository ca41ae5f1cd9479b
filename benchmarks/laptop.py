"""Make, pack and train the `laptop` recipe: 16,000 synthetic clips, none of which says a text of the test sets.

    python -m benchmarks.laptop

Each stage is done once; a second run goes on where the first stopped. `outputs/laptop_stages.json` says how long each
took, synthesis with what the speech cache already held.
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.asterisk import asterisk_texts
from benchmarks.test_sets import is_test_text
from qwen_term_retrieval.audio.corpus import read_corpus
from qwen_term_retrieval.audio.packing import pack_corpus
from qwen_term_retrieval.audio.utterance import Utterance
from qwen_term_retrieval.synthesis.laptop import make_laptop_corpus
from qwen_term_retrieval.text.wordlists import computing_terms, medical_terms, place_names, wordnet_terms

CORPUS, PACK, MODEL = Path("outputs/laptop-corpus"), Path("packs/laptop"), Path("outputs/laptop")
BANK = Path("outputs/laptop-bank.txt")
BANK_TERMS = 60_000
STAGES = Path("outputs/laptop_stages.json")


def synthesize() -> None:
    if not CORPUS.is_dir():
        make_laptop_corpus(CORPUS, exclude=asterisk_texts())


def pack() -> None:
    if not (PACK / "pack.json").is_file():
        summary = pack_corpus(unheard(read_corpus(CORPUS)), PACK)
        print(summary)


def unheard(utterances: Iterator[Utterance]) -> Iterator[Utterance]:
    """Without the few that say a text of a test set: `exclude` knows the prompts alone, and one spelling of each."""
    return (each for each in utterances if not any(is_test_text(text) for text in (each.text, *each.terms)))


def write_bank() -> None:
    """Terms that the text tower sees as wrong answers: a sample of word lists, without the texts of the test sets."""
    if not BANK.is_file():
        terms = [*wordnet_terms(), *medical_terms(), *computing_terms(), *place_names()]
        allowed = [term for term in terms if not is_test_text(term)]
        drawn = random.Random(0).sample(allowed, BANK_TERMS)
        BANK.write_text("".join(f"{term}\n" for term in drawn), encoding="utf-8")


def train() -> None:
    if not (MODEL / "model.safetensors").is_file():
        flags = ["--recipe", "laptop", "--glossary", str(BANK), "--resume"]
        subprocess.run([sys.executable, "scripts/train.py", *flags], check=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seconds: dict[str, float] = json.loads(STAGES.read_text(encoding="utf-8")) if STAGES.is_file() else {}
    for stage in (synthesize, pack, write_bank, train):
        print(f"== {stage.__name__}", flush=True)
        started = time.monotonic()
        stage()
        seconds[stage.__name__] = seconds.get(stage.__name__, 0.0) + round(time.monotonic() - started, 1)
        STAGES.parent.mkdir(parents=True, exist_ok=True)
        STAGES.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
