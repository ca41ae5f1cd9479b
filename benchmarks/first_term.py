"""From an empty environment to the first found term: `python -m benchmarks.first_term`.

The wheel is built, everything that it needs is downloaded into a folder and counted, and from there it is installed
into a new environment, which is timed without any line. Then `qtr search` runs twice with an empty cache: it fetches
the base tower first, and finds it there the second time. The download is given as what its bytes take on a line of
`--mbits` megabits a second; all else is measured, the fetching of the base tower on this machine's line included.

pip takes the build of torch that it knows of: here the CPU's. Where it knows the CUDA build alone, that is gigabytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.results_json import RESULTS, write_results

PROJECT = Path(__file__).parents[1]
GLOSSARY = PROJECT / "builders/term_audio/glossary.json"
RECORDING = PROJECT / "builders/term_audio/demo/test/kokoro-am_michael/0077.ogg"
CONSTRAINTS = PROJECT / "constraints.txt"


def timed(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path = Path("/")
) -> tuple[float, str]:
    """Seconds, and what was printed; elsewhere than in the checkout.

    Raises:
        RuntimeError: the command failed; with the end of what it said.
    """
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{command[0]} … ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return time.perf_counter() - started, done.stdout


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def measure(work: Path, model: str) -> dict[str, Any]:
    wheels, environment, cache = work / "wheels", work / "venv", work / "cache"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built, _ = timed([*pip, "wheel", "--no-deps", "--wheel-dir", work, PROJECT])
    (wheel,) = work.glob("*.whl")
    wanted = f"qwen_term_retrieval[phonemes] @ file://{wheel}"
    # docopt, which num2words wants, comes as source: what builds it must be there too.
    timed([*pip, "download", "--constraint", CONSTRAINTS, "--dest", wheels, wanted, "setuptools", "wheel"])
    made, _ = timed([sys.executable, "-m", "venv", environment])
    there: list[str | Path] = ["--no-index", "--find-links", wheels, "--constraint", CONSTRAINTS]
    inside: list[str | Path] = [environment / "bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    installed, _ = timed([*inside, "install", *there, wanted])
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"HF_HOME": str(cache)}
    search: list[str | Path] = [environment / "bin/qtr", "search", GLOSSARY, RECORDING.name, "--model", model]
    first, said = timed(search, env, RECORDING.parent)
    again, _ = timed(search, env, RECORDING.parent)
    return {
        "model": model,
        "bytes": {"wheel": wheel.stat().st_size, "all wheels": size_of(wheels), "base tower, unpacked": size_of(cache)},
        "seconds": {
            "wheel built": built,
            "environment made": made,
            "installed, from files": installed,
            "first search, base tower fetched": first,
            "second search": again,
        },
        "said": said.strip(),
    }


def as_table(found: Mapping[str, Any], mbits: float) -> str:
    num_bytes = found["bytes"]["all wheels"] + found["bytes"]["base tower, unpacked"]
    seconds = dict(found["seconds"])
    del seconds["wheel built"], seconds["second search"]
    line = num_bytes * 8 / (mbits * 1e6)
    rows = [[f"{num_bytes / 1e6:.0f} MB on a line of {mbits:.0f} Mbit/s", f"{line:.1f}"]]
    rows += [[name, f"{value:.1f}"] for name, value in seconds.items()]
    rows.append(["**in all**", f"**{line + sum(seconds.values()):.1f}**"])
    rows.append(["of which no download", f"{sum(seconds.values()):.1f}"])
    rows.append(["a second search", f"{found['seconds']['second search']:.1f}"])
    return table(["from nothing to the first term", "s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="which of those that come along (default base)")
    parser.add_argument("--mbits", type=float, default=100.0, help="of the line, megabits a second (default 100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work), options.model)
    found["mbits"] = options.mbits
    write_results(RESULTS / "first_term.json", found, packages=("torch", "transformers", "pip"))
    text = f"`{options.model}`:\n\n{as_table(found, options.mbits)}\n\n```\n{found['said']}\n```\n"
    (RESULTS / "first_term.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
