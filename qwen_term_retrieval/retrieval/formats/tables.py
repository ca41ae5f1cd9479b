"""Matches to a pandas table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qwen_term_retrieval.retrieval.matches import TermMatch

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("clip", "term", "score", "probability", "start", "end", "language")


def matches_to_pandas(
    matches: Iterable[TermMatch] | Iterable[Sequence[TermMatch]], clips: Sequence[object] | None = None
) -> pd.DataFrame:
    """A row a match: `clip`, `term`, `score`, `probability` (NaN if not verified), `start`, `end` in seconds.

    Args:
        matches: of one clip, or the lists of several as `search_batch` gives them.
        clips: what the column `clip` has for each; default their numbers.

    Example:
        >>> matches_to_pandas(retriever.search_batch(files), clips=files)     # doctest: +SKIP

    Raises:
        ValueError: not one of `clips` for each list.
    """
    import pandas as pd

    given: list[Any] = list(matches)
    alone = [each for each in given if isinstance(each, TermMatch)]
    lists = [alone] if alone else [list(each) for each in given]
    names: list[object] = list(range(len(lists))) if clips is None else list(clips)
    if len(names) != len(lists):
        raise ValueError(f"{len(names)} clips are named, and there are matches of {len(lists)}")
    rows = [
        (name, match.term, match.score, match.probability, match.start, match.end, match.language)
        for name, own in zip(names, lists, strict=True)
        for match in own
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"score": float, "probability": float, "start": float, "end": float})
