"""Tables of results in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    # Not padded: sentences stand in cells, and numbers have the digits that whoever wrote them wants.
    return tabulate(rows, header, "github", disable_numparse=True, numalign=None, stralign=None) + "\n"


def thousands(number: float) -> str:
    return "–" if math.isnan(number) else f"{number:,.0f}"
