"""Which errors end a script or a command in one line, and which keep their traceback.

Where this package finds that a setting, a file or a machine cannot do what was asked, it says so by a `raise` of its
own, and the message is all that helps. So it is where the operating system refuses a file, which its error names.
Whatever else is raised, by a library or by an operation of ours that was not meant to fail, is a bug, and its traceback
is what helps.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "qwen_term_retrieval"
# Found, not imported: a command that packs audio has no use for torch. Two lie elsewhere in a checkout.
_SPECS = [find_spec(name) for name in (_PACKAGE, f"{_PACKAGE}.builders", f"{_PACKAGE}.trainer_callbacks")]
_OURS = tuple(str(Path(spec.origin).parent) for spec in _SPECS if spec and spec.origin)
REFUSALS = (ValueError, OSError, RuntimeError, ImportError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the script with `error: …` and exit code 1 on a refusal.

    Example:
        >>> with one_line_errors():                     # doctest: +SKIP
        ...     run_training(*parse_recipe(TERM_RETRIEVAL, RECIPES))
    """
    try:
        yield
    except REFUSALS as error:
        if not is_refusal(error):
            raise
        sys.exit(f"error: {error}")


def is_refusal(error: BaseException) -> bool:
    """Whether the error comes from a `raise` in this package, in whichever process, or names a file it is about."""
    if type(error).__module__.startswith(f"{_PACKAGE}.") or getattr(error, "filename", None) is not None:
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.startswith(_OURS) and (last.line or "").startswith("raise ")
