"""Make, pack and train the `laptop` recipe: 16,000 synthetic clips, none of which says a text of the test set.

    python -m benchmarks.laptop

Each stage is done once; a second run goes on where the first stopped. `outputs/laptop_stages.json` says how long each
took, synthesis with what the speech cache already held.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.asterisk import asterisk_texts, is_asterisk_text
from qwen_term_retrieval.audio.corpus import read_corpus
from qwen_term_retrieval.audio.packing import pack_corpus
from qwen_term_retrieval.audio.utterance import Utterance
from qwen_term_retrieval.synthesis.laptop import make_laptop_corpus

CORPUS, PACK, MODEL = Path("outputs/laptop-corpus"), Path("packs/laptop"), Path("outputs/laptop")
STAGES = Path("outputs/laptop_stages.json")


def synthesize() -> None:
    if not CORPUS.is_dir():
        make_laptop_corpus(CORPUS, exclude=asterisk_texts())


def pack() -> None:
    if not (PACK / "pack.json").is_file():
        summary = pack_corpus(unheard(read_corpus(CORPUS)), PACK)
        print(summary)


def unheard(utterances: Iterator[Utterance]) -> Iterator[Utterance]:
    """Without the few whose text is a prompt's in another spelling ("X-ray" for "xray"); `exclude` knows just one."""
    return (each for each in utterances if not any(is_asterisk_text(text) for text in (each.text, *each.terms)))


def train() -> None:
    if not (MODEL / "model.safetensors").is_file():
        subprocess.run([sys.executable, "scripts/train.py", "--recipe", "laptop", "--resume"], check=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seconds: dict[str, float] = json.loads(STAGES.read_text(encoding="utf-8")) if STAGES.is_file() else {}
    for stage in (synthesize, pack, train):
        print(f"== {stage.__name__}", flush=True)
        started = time.monotonic()
        stage()
        seconds[stage.__name__] = seconds.get(stage.__name__, 0.0) + round(time.monotonic() - started, 1)
        STAGES.parent.mkdir(parents=True, exist_ok=True)
        STAGES.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
