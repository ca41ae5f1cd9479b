"""Which errors end a script in one line, and which keep their traceback.

Where this package finds that a setting, a file or a machine cannot do what was asked, it says so by a `raise` of its
own, and the message is all that helps. Whatever else is raised, by a library or by an operation of ours that was not
meant to fail, is a bug, and its traceback is what helps.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qwen_term_retrieval
from qwen_term_retrieval import builders, trainer_callbacks

_PACKAGES = (qwen_term_retrieval, builders, trainer_callbacks)
_OURS = tuple(str(Path(str(package.__file__)).parent) for package in _PACKAGES)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the script with `error: …` and exit code 1 on a refusal.

    Example:
        >>> with one_line_errors():                     # doctest: +SKIP
        ...     run_training(*parse_recipe(RECIPES))
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if not is_refusal(error):
            raise
        sys.exit(f"error: {error}")


def is_refusal(error: BaseException) -> bool:
    """Whether the error comes from a `raise` in this package."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.startswith(_OURS) and (last.line or "").startswith("raise ")
