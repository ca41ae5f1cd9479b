"""The end of a message about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest name that does exist, as the end of a message; empty where none is near.

    >>> did_you_mean("learnig_rate", ["learning_rate", "seed"])
    "; did you mean 'learning_rate'?"
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
