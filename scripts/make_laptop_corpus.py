"""Make the corpus of the `laptop` recipe: short synthetic clips, none of which says a text of `--exclude`.

python scripts/make_laptop_corpus.py outputs/laptop-corpus --exclude texts.txt
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.synthesis.laptop import NUM_CLIPS, NUM_KOKORO, make_laptop_corpus
from qwen_term_retrieval.text.spellings import normalize_term


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the corpus")
    parser.add_argument("--exclude", type=Path, help="file of texts that must not be said, one a line")
    parser.add_argument("--num_clips", type=int, default=NUM_CLIPS)
    parser.add_argument(
        "--num_kokoro", type=int, default=NUM_KOKORO, help="clips by Kokoro, about a second of one core each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    excluded = arguments.exclude.read_text(encoding="utf-8").splitlines() if arguments.exclude else []
    make_laptop_corpus(
        arguments.out,
        num_clips=arguments.num_clips,
        num_kokoro=arguments.num_kokoro,
        seed=arguments.seed,
        exclude=frozenset(map(normalize_term, excluded)),
        num_workers=arguments.num_workers,
        overwrite=arguments.overwrite,
        show_progress=not arguments.quiet,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
