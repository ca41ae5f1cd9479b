"""Text pre-training beside peers, from one run.

python -m benchmarks.text_pretraining                       # WordNet's glosses, prepared on first use
python -m benchmarks.text_pretraining --only opening --quick
python -m benchmarks.text_pretraining --only gpu            # five minutes on a GPU
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sections import kept_sections, measured_line, parsed, run_sections, section_parser
from benchmarks.text_pretraining.loaders import measure_loaders, measure_padding, measure_peers
from benchmarks.text_pretraining.memory import measure_memory
from benchmarks.text_pretraining.opening import measure_opening
from benchmarks.text_pretraining.steps import measure_gpu, measure_steps
from qwen_term_retrieval.pretraining.text.preparation.preparing import prepare_text

SECTIONS = ("opening", "padding", "loader", "peers", "step", "memory", "gpu")
QUICK = {"pairs": [1000, 4000], "sparse": [10_000], "batches": 5, "rounds": 1, "steps": 8}


def main() -> None:
    parser = section_parser(__doc__ or "", SECTIONS, Path("outputs/benchmark-text"))
    parser.add_argument("--data", type=Path, help="a prepared folder; WordNet's glosses unless given")
    parser.add_argument("--peers_python", type=Path, help="of an environment with litdata and mosaicml-streaming")
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 10_000_000], help="sizes of section memory")
    parser.add_argument("--sparse", type=int, nargs="+", default=[10_000_000, 50_000_000], help="sizes of opening")
    parser.add_argument("--batches", type=int, default=500, help="batches of a round of the loader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each trainer")
    options = parsed(parser, SECTIONS, QUICK)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    data = options.data or work / "wordnet"
    if not data.is_dir():
        prepare_text(None, data, corpus="wordnet", quiet=True)
    runs = {
        "opening": lambda: measure_opening(work, options.sparse),
        "padding": lambda: measure_padding(data),
        "loader": lambda: measure_loaders(data, work, options.batches, options.rounds),
        "peers": lambda: measure_peers(data, work, options.peers_python, options.batches, options.rounds),
        "step": lambda: measure_steps(data, work, options.steps),
        "memory": lambda: measure_memory(work, options.pairs),
        "gpu": lambda: measure_gpu(data),
    }
    path = options.results / "text_pretraining.json"
    packages = ("torch", "transformers", "datasets", "pyarrow", "ijson", "numpy")
    chosen = {name: runs[name] for name in options.sections if name != "peers" or options.peers_python}
    run_sections(path, kept_sections(path, {}, SECTIONS), chosen, report, packages=packages)


def report(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["# Text pre-training", ""]
    for section in SECTIONS:
        if section in results:
            lines += [
                f"## {section}",
                "",
                measured_line(results, section),
                "",
                *(_line(name, value) for name, value in results[section].items()),
                "",
            ]
    return "\n".join(lines)


def _line(name: str, value: Any) -> str:
    return f"- {name}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
