"""Rebuild the demo corpus of `builders/term_audio` from the registry's speech engines.

python scripts/make_demo_corpus.py --overwrite    # writes builders/term_audio/demo
python scripts/make_demo_corpus.py --check        # rebuilds elsewhere and compares every file, byte by byte
"""

from __future__ import annotations

import argparse
import filecmp
import logging
import sys
import tempfile
from pathlib import Path

from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.synthesis.corpus_folder import REPORT_NAME, write_corpus
from qwen_term_retrieval.synthesis.demo import demo_rows

SOURCE = Path(__file__).parent.parent / "builders" / "term_audio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SOURCE / "demo")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with what is there")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {"num_workers": arguments.num_workers, "show_progress": not arguments.quiet}
    rows = demo_rows(SOURCE)
    if not arguments.check:
        if arguments.overwrite and arguments.out == SOURCE / "demo" and arguments.out.is_dir():
            (arguments.out / REPORT_NAME).touch()  # kept without it, and replaced only where it is
        write_corpus(rows, arguments.out, audio_format="ogg", overwrite=arguments.overwrite, **options)
        (arguments.out / REPORT_NAME).unlink()  # times differ from run to run; all else does not
        return
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = Path(folder) / "demo"
        write_corpus(rows, rebuilt, audio_format="ogg", **options)
        (rebuilt / REPORT_NAME).unlink()
        different = differing_files(rebuilt, arguments.out)
    if different:
        sys.exit(f"{len(different)} files differ from {arguments.out}, such as {different[:3]}")
    print(f"{len(rows)} clips rebuilt: every file is the same as in {arguments.out}")


def differing_files(one: Path, other: Path) -> list[str]:
    names = {path.relative_to(root).as_posix() for root in (one, other) for path in root.rglob("*") if path.is_file()}
    _, different, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(different + missing)


if __name__ == "__main__":
    with one_line_errors():
        main()
