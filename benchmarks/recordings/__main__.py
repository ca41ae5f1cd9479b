"""Long recordings and live audio: `python -m benchmarks.recordings --model default`.

    python -m benchmarks.recordings --model default               # an hour, a sparse 15 GB, live; quiet machine
    python -m benchmarks.recordings --model default --ten-hours   # ten hours of speech too: ten minutes and more
    python -m benchmarks.recordings --model default --dtype bfloat16
    python -m benchmarks.recordings --model default --quick

The peer of a search is real time, that of memory is a recording of a tenth of the length, that of a stream with small
hops the stream that hears as a search does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import soundfile
import torch

from benchmarks.markdown import table
from benchmarks.recordings.live import live
from benchmarks.recordings.search import measured
from benchmarks.recordings.speech import glossary, live_speech, write_speech
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.retriever import TermRetriever

HOUR = 3600
STREAM_COLUMNS = [
    "hop, s", "terms", "found", "delay, median s", "p95 s", "cores", "told / by a search",
    "score differs, median / most",
]  # fmt: skip
_PACKAGES = ("torch", "transformers", "numpy", "soundfile", "soxr")


def long_recordings(model: str, terms: Path, folder: Path, lengths: list[int], args: argparse.Namespace) -> list[Any]:
    rows = []
    for seconds in lengths:
        path = folder / f"{seconds}.flac"
        write_speech(path, seconds)
        found = measured(model, args.dtype, terms, path, args.threads, args.threshold)
        rows.append({"recording": f"{seconds / 60:g} min of speech, FLAC", "recording_s": seconds, **found})
        path.unlink()
    return rows


def sparse(model: str, terms: Path, folder: Path, num_bytes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Five minutes of speech, then silence that takes no room on the disk, as WAV whose header gave up counting."""
    path = folder / "sparse.wav"
    write_speech(folder / "speech.flac", 300)
    pcm, _ = soundfile.read(folder / "speech.flac", dtype="int16")
    soundfile.write(path, pcm, SAMPLING_RATE)
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    with path.open("r+b") as file:
        file.truncate(num_bytes)
    found = measured(model, args.dtype, terms, path, args.threads, args.threshold)
    seconds = num_bytes // 2 / SAMPLING_RATE
    return {"recording": f"{num_bytes / 1e9:g} GB WAV, silent but 5 min", "recording_s": seconds, **found}


def table_of_recordings(rows: list[dict[str, Any]]) -> str:
    header = ["recording", "× real time", "CPU s", "first match, s", "MB before", "MB at the peak", "matches"]
    return table(header, [
        [row["recording"], f"{row['recording_s'] / row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}",
         "–" if row["first_match_s"] is None else f"{row['first_match_s']:.1f}", f"{row['before_mb']:.0f}",
         f"{row['peak_mb']:.0f}", row["matches"]]
        for row in rows
    ])  # fmt: skip


def table_of_streams(rows: list[dict[str, Any]]) -> str:
    return table(STREAM_COLUMNS, [
        [f"{row['hop_s']:.2f}", row["terms"], row["found"], f"{row['delay_median_s']:.2f}",
         f"{row['delay_p95_s']:.2f}", f"{row['cores']:.2f}", f"{row['told']} / {row['told_by_search']}",
         f"{row['score_differs_median']:.3f} / {row['score_differs_most']:.3f}"]
        for row in rows
    ])  # fmt: skip


def report(runs: dict[str, Any]) -> str:
    parts = ["# Recordings\n\nMade by `python -m benchmarks.recordings`.\n"]
    for name, run in runs.items():
        about = f"{run['terms']:,} terms, {run['threads']} threads, {run['date']}"
        parts.append(f"\n## {name}\n\n{about}\n\n{table_of_recordings(run['recordings'])}")
        parts.append(f"\nLive, {run['live_s']} s:\n\n{table_of_streams(run['streams'])}")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--terms", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=0.69)
    parser.add_argument("--ten-hours", action="store_true")
    parser.add_argument("--quick", action="store_true", help="minutes in place of hours, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "recordings.json")
    args = parser.parse_args()

    lengths = [30, 300] if args.quick else [HOUR // 10, HOUR] + [10 * HOUR] * args.ten_hours
    live_seconds = 30 if args.quick else 120
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        terms = folder / "terms.txt"
        terms.write_text("\n".join(glossary(args.terms)), encoding="utf-8")
        rows = long_recordings(args.model, terms, folder, lengths, args)
        rows.append(sparse(args.model, terms, folder, 1 << 30 if args.quick else 15_000_000_000, args))
        print(table_of_recordings(rows), flush=True)

        torch.set_num_threads(args.threads)
        retriever = TermRetriever.from_pretrained(args.model, device="cpu", dtype=args.dtype)
        retriever.index(terms, show_progress=False)
        pcm, said = live_speech(live_seconds)
        streams = [live(retriever, pcm, said, hop=hop, threshold=args.threshold) for hop in (0.25, 0.5, 1.0)]
        print(table_of_streams(streams))
    # What was measured with other models stays.
    runs = json.loads(args.output.read_text(encoding="utf-8"))["runs"] if args.output.is_file() else {}
    runs[f"{args.model}, {args.dtype}"] = {
        "date": datetime.date.today().isoformat(), "terms": args.terms, "threads": args.threads,
        "threshold": args.threshold, "recordings": rows, "live_s": live_seconds, "streams": streams,
    }  # fmt: skip
    write_results(args.output, {"runs": runs}, packages=_PACKAGES)
    args.output.with_suffix(".md").write_text(report(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
