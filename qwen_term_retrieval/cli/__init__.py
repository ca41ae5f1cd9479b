"""The command `qtr`: one file a family of commands.

Every command is one call into the library; what is heavy is imported when a command runs.
"""

from qwen_term_retrieval.cli import models, packs, retrieval, synthesis, tokens
from qwen_term_retrieval.cli.app import app

__all__ = ["app", "models", "packs", "retrieval", "synthesis", "tokens"]
