"""How far a long piece of work is: a bar where there is a terminal, a line in the log every ten seconds where not.

`Progress` is called as `tqdm` is, with `shown` in place of `disable`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

logger = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0


class Progress(tqdm):
    """`tqdm`, which says in the log how far it is where nobody sees a bar.

    The first line comes after ten seconds: what is done by then needs none.
    """

    def __init__(self, *args: Any, shown: bool = True, **kwargs: Any):
        stream = kwargs.get("file") or sys.stderr
        self._logs = shown and not stream.isatty()
        self._desc, self._unit = kwargs.get("desc") or "working", kwargs.get("unit", "it").strip()
        self._first = kwargs.get("initial", 0)
        self._began = self._last = time.monotonic()
        super().__init__(*args, disable=self._logs or not shown, **kwargs)

    @property
    def is_seen(self) -> bool:
        """Whether anybody sees how far it is, in a bar or in lines."""
        return self._logs or not self.disable

    def __iter__(self) -> Iterator[Any]:
        if not self._logs:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update(1)

    def update(self, n: float | None = 1) -> bool | None:
        """As of `tqdm`."""
        if not self._logs:
            return super().update(n)
        self.n += n or 0
        now = time.monotonic()
        if now - self._last < LINE_EVERY_SECONDS:
            return False
        self._last = now
        logger.info("%s", self._line(now - self._began))
        return True

    def _line(self, seconds: float) -> str:
        sized = self._unit == "B"
        count = plain_tqdm.format_sizeof if sized else lambda number: f"{number:,.0f}"
        total = f" of {count(self.total)}" if self.total else ""
        rate = (self.n - self._first) / seconds
        left = f", {plain_tqdm.format_interval((self.total - self.n) / rate)} left" if self.total and rate else ""
        return f"{self._desc}: {count(self.n)}{total} {self._unit}, {rate:,.1f} a second{left}"
