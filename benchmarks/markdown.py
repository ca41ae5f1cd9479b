"""Tables of results in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def thousands(number: float) -> str:
    return "–" if math.isnan(number) else f"{number:,.0f}"
