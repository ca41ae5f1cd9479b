"""The log of a run as a file, a line of JSON a log line: what is watched while it runs, by `tail -f`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_term_retrieval.storage.atomic import atomic_file


class LogFile:
    """`log.jsonl` in the folder of a run; the main process writes it.

    A callback cannot: of a resumed run the Trainer makes new callbacks, in another order, and a line would be written
    before all have added to it.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir, "log.jsonl")

    def append(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=float) + "\n")

    def go_on_from(self, step: int) -> None:
        """Drop the lines of later steps, which a resumed run takes again, and what a kill has left of a line."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            with atomic_file(self.path) as file:
                file.write("".join(line for line in lines if _step(line) <= step).encode())


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
