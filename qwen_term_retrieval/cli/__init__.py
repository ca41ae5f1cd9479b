"""The command `qtr`: one file a family of commands.

Every command is one call into the library; what is heavy is imported when a command runs.

app.py         the root, and what commands share
packs.py       `pack`, `append`, `merge`, `export`, `inspect`, `verify`
tokens.py      `tokenize`
text.py        `text convert`, `split`, `inspect`, `train-tokenizer`
searching.py   `search`
retrieval.py   `index`, `evaluate`, `report`, `calibrate`
explaining.py  `explain`
pronouncing.py  `pronounce`
argument_order.py  the model of `search`, first or last
synthesis.py   `synthesize`
models.py      `models`
converting.py  `convert-nemo`
"""

from qwen_term_retrieval.cli import (
    converting,
    explaining,
    models,
    packs,
    pronouncing,
    retrieval,
    searching,
    synthesis,
    text,
    tokens,
)
from qwen_term_retrieval.cli.app import app

__all__ = [
    "app",
    "converting",
    "explaining",
    "models",
    "packs",
    "pronouncing",
    "retrieval",
    "searching",
    "synthesis",
    "text",
    "tokens",
]
