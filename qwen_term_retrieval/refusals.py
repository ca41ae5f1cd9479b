"""Which errors end a script or a command in one line, and which keep their traceback.

Where this package finds that a setting, a file or a machine cannot do what was asked, it says so by a `raise` of its
own, and the message is all that helps. So it is where the operating system refuses a file, which its error names.
Whatever else is raised, by a library or by an operation of ours that was not meant to fail, is a bug, and its traceback
is what helps.
"""

from __future__ import annotations

import errno
import os
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


# 128 + SIGINT, as shells have it.
INTERRUPTED = 130
_REMEDIES = {
    errno.EROFS: "it cannot be written to: give another place",
    errno.EACCES: "give another place, or the right to it",
    errno.EPERM: "give another place, or the right to it",
    errno.ENOSPC: "make room there, or give another place",
    errno.EDQUOT: "make room there, or give another place",
}


@contextmanager
def one_line_errors(interrupted: str = "") -> Iterator[None]:
    """End the script with `error: …` and exit code 1 on a refusal, with one line and 130 on Ctrl-C.

    `interrupted`: what that line adds, such as how to go on.

    Example:
        >>> with one_line_errors():                     # doctest: +SKIP
        ...     run_training(*parse_recipe(TERM_RETRIEVAL, RECIPES))
    """
    try:
        yield
    except REFUSALS as error:
        if not is_refusal(error):
            raise
        sys.exit(f"error: {message_of(error)}")
    except KeyboardInterrupt:
        print(interrupted_line(interrupted), file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)


def interrupted_line(what_next: str = "") -> str:
    """What is said on Ctrl-C, on a line below the bar that may stand there."""
    return f"\ninterrupted: {what_next}" if what_next else "\ninterrupted"


def message_of(error: BaseException) -> str:
    """The message of a refusal; of the operating system's, what it refused and what helps, without its number.

    >>> message_of(PermissionError(13, "Permission denied", "/srv/pack"))
    '/srv/pack: Permission denied; give another place, or the right to it'
    """
    if not isinstance(error, OSError) or error.strerror is None or not isinstance(error.filename, str | bytes):
        return str(error)
    remedy = _REMEDIES.get(error.errno or 0, "")
    return f"{os.fsdecode(error.filename)}: {error.strerror}{f'; {remedy}' if remedy else ''}"


def is_refusal(error: BaseException) -> bool:
    """Whether the error comes from a `raise` in this package, in whichever process, or names a file it is about."""
    if type(error).__module__.startswith(f"{_PACKAGE}.") or getattr(error, "filename", None) is not None:
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.startswith(_OURS) and (last.line or "").startswith("raise ")
