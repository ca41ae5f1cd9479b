"""What the stages of a run leave for one another: JSON files in its work folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_json import RESULTS


@dataclass
class WorkFolder:
    """A folder of stage results, `<name>.json` each."""

    work: Path

    def save(self, name: str, content: Any) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def has(self, name: str) -> bool:
        return (self.work / f"{name}.json").is_file()

    def load(self, name: str) -> Any:
        path = self.work / f"{name}.json"
        if not self.has(name):
            raise FileNotFoundError(f"{path} is missing: run the stage that makes it first (see --help)")
        return json.loads(path.read_text(encoding="utf-8"))

    def load_all(self, names: list[str]) -> dict[str, Any]:
        """Those of the results that are there; raises as `load` where none is."""
        there = [name for name in names if self.has(name)]
        return {name: self.load(name) for name in there or names[:1]}


@dataclass
class SetRun(WorkFolder):
    """A run on a test set that has stages of its own: the model judged, the set's folder, and where results go."""

    model_folder: Path | None = None
    corpus: Path | None = None
    results: Path = RESULTS
