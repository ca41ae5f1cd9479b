"""The command `qtr`: one file a family of commands.

Every command is one call into the library; what is heavy is imported when a command runs.

    app        the root, and what commands share
    packs      `pack`, `append`, `merge`, `export`, `inspect`, `verify`
    tokens     `tokenize`
    retrieval  `search`, `index`, `evaluate`, `calibrate`
    synthesis  `synthesize`
    models     `models`
"""

from qwen_term_retrieval.cli import models, packs, retrieval, synthesis, tokens
from qwen_term_retrieval.cli.app import app

__all__ = ["app", "models", "packs", "retrieval", "synthesis", "tokens"]
