"""Make pairs of prompt and response ready for `scripts/pretrain_text.py`: one command, from files to token packs.

python scripts/prepare_text.py                                          # the demo: WordNet's glosses, a minute
python scripts/prepare_text.py data/faq --source faq.csv --column prompt=question --column response=answer
python scripts/prepare_text.py data/mine --source pretrain_train_10m.parquet --valid_source pretrain_valid_100k.parquet
python scripts/prepare_text.py data/text_sounds --corpus sounds --vocab_size 384 --valid 0.02
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from qwen_term_retrieval.pretraining.text.preparation.corpora import CORPORA
from qwen_term_retrieval.pretraining.text.preparation.pairs import named_columns
from qwen_term_retrieval.pretraining.text.preparation.preparing import prepare_text
from qwen_term_retrieval.refusals import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("data/text_demo"), help="folder to make")
    parser.add_argument("--source", nargs="+", help="CSV, TSV, JSON, JSON Lines or Parquet files, or folders of them")
    parser.add_argument("--corpus", help=f"in place of files: {', '.join(CORPORA)} (default wordnet)")
    parser.add_argument("--valid_source", nargs="+", help="files of validation pairs, in place of a share")
    parser.add_argument("--test_source", nargs="+", help="files of test pairs, in place of a share")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="a column of another name")
    parser.add_argument("--on_error", choices=("raise", "skip"), default="raise", help="a row that is no pair")
    parser.add_argument("--valid", type=float, default=0.1, help="share of the distinct responses for validation")
    parser.add_argument("--test", type=float, default=0.0, help="share for a test set")
    parser.add_argument("--seed", type=int, default=42, help="of the split and the tokenizer's sample")
    parser.add_argument("--tokenizer", help="Hub id or folder; one is trained unless given")
    parser.add_argument("--vocab_size", type=int, default=8192, help="tokens of the tokenizer that is trained")
    parser.add_argument("--max_seq_len", type=int, default=192, help="limit of which the report says what it cuts")
    parser.add_argument("--num_workers", type=int, help="processes that tokenize; one a core unless given")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    columns = named_columns(arguments.pop("column"))
    if not arguments["source"]:
        arguments["corpus"] = arguments["corpus"] or "wordnet"
    print(f"{prepare_text(arguments.pop('source'), arguments.pop('out'), columns=columns, **arguments)} is ready")


if __name__ == "__main__":
    with one_line_errors():
        main()
