"""How far the peak memory of each step over pairs grows when there are many times more of them.

python tests/processes/text_memory.py FOLDER

Prints a line a step: its name, and the growth in megabytes from 16,000 rows to 64,000.
"""

import json
import sys
from pathlib import Path

from qwen_term_retrieval.pretraining.text.preparation.converting import convert_pairs
from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
from qwen_term_retrieval.pretraining.text.preparation.splitting import split_pairs
from qwen_term_retrieval.pretraining.text.preparation.vocabulary import sampled_texts
from qwen_term_retrieval.trainer_callbacks.token_throughput import peak_rss_bytes

WORDS = " ".join(f"word{number}" for number in range(60))


def write_list(path, num_rows):
    """About 800 bytes a row: 13 MB, which fill every buffer, and 51 MB."""
    with path.open("w") as file:
        for row in range(num_rows):
            file.write(("," if row else "[") + json.dumps({"prompt": f"{row} {WORDS}", "response": f"{WORDS} {row}"}))
        file.write("]")


def main(folder):
    folder = Path(folder)
    sizes = {"few": 16_000, "many": 64_000}
    for size, num_rows in sizes.items():
        write_list(folder / f"{size}.json", num_rows)
    steps = {
        "convert": lambda size: convert_pairs(folder / f"{size}.json", folder / f"{size}.parquet", quiet=True),
        "split": lambda size: split_pairs(folder / f"{size}.parquet", folder / size, quiet=True),
        "inspect": lambda size: inspect_pairs(folder / f"{size}.parquet", quiet=True),
        "sample": lambda size: sum(map(len, sampled_texts([folder / f"{size}.parquet"], 100_000, 0))),
    }
    for name, step in steps.items():
        step("few")
        before = peak_rss_bytes()
        step("many")
        print(name, (peak_rss_bytes() - before) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
