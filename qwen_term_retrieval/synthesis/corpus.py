"""Synthetic corpora: rows of (what to say, which terms are in it) become a folder of audio with a manifest a split.

The folder is what `read_corpus` and `qtr pack` read: `<split>.termaudio` (JSON Lines) beside `<split>/<speaker>/…`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen_term_retrieval.synthesis.ogg import encode_opus
from qwen_term_retrieval.synthesis.rendering import RenderReport, SpeechRequest, read_rendered, render
from qwen_term_retrieval.synthesis.speech import SAMPLING_RATE

REPORT_NAME = "synthesis.json"


@dataclass(frozen=True)
class CorpusRow:
    """One clip to be: what to say, and in which split. `is_term` says that `request.text` is a term, else none is."""

    request: SpeechRequest
    split: str = "train"
    is_term: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_corpus(
    rows: Sequence[CorpusRow],
    out: str | Path,
    *,
    audio_format: Literal["flac", "ogg"] = "flac",
    made_from: Mapping[str, Any] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    num_workers: int = 2,
    show_progress: bool = True,
) -> RenderReport:
    """Render `rows` and lay them out in the folder `out`, which appears whole or not at all.

    FLAC files are hard links into the speech cache where the file system allows; Ogg files hold Opus. What was made
    (clips, seconds, voices and time of each engine, failures, `made_from`) is written to `synthesis.json` beside it.

    Raises:
        FileExistsError: if `out` exists and `overwrite` is not set.
        ValueError: if there are no rows, or from `render`.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another folder or pass overwrite=True (--overwrite)")
    if not rows:
        raise ValueError(f"no rows to synthesise for {out}")
    requests = [row.request for row in rows]
    report = render(requests, num_workers=num_workers, on_error=on_error, show_progress=show_progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        manifests = _write_audio((row for row in rows if row.request.path.is_file()), folder, audio_format)
        for split, lines in manifests.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{split}.termaudio").write_text(text, encoding="utf-8")
        summary = {"made_from": dict(made_from or {}), **describe(manifests, report)}
        (folder / REPORT_NAME).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        folder.rename(out)
    return report


def describe(manifests: Mapping[str, Sequence[Mapping[str, Any]]], report: RenderReport) -> dict[str, Any]:
    """Counts for the report file: clips, seconds, voices and rendering time of each engine, clips of each split."""
    engines: dict[str, dict[str, Any]] = defaultdict(lambda: {"clips": 0, "seconds": 0.0, "render_seconds": 0.0})
    voices = defaultdict(set)
    for line in (line for lines in manifests.values() for line in lines):
        engine = engines[line["engine"]]
        engine["clips"] += 1
        engine["seconds"] += line["seconds"]
        engine["render_seconds"] += line["render_seconds"]
        voices[line["engine"]].add(line["speaker"])
    for name, engine in engines.items():
        engine |= {"seconds": round(engine["seconds"], 1), "render_seconds": round(engine["render_seconds"], 1)}
        engine["voices"] = len(voices[name])
    return {
        "splits": {split: len(lines) for split, lines in manifests.items()},
        "engines": dict(sorted(engines.items())),
        "not_spoken": [{"text": text, "reason": reason} for text, reason in report.failed],
    }


def _write_audio(rows: Iterable[CorpusRow], folder: Path, audio_format: str) -> dict[str, list[dict[str, Any]]]:
    manifests: dict[str, list[dict[str, Any]]] = defaultdict(list)
    count_of: Counter[str] = Counter()
    for row in rows:
        request = row.request
        speaker_folder = f"{row.split}/{request.speaker}"
        count_of[speaker_folder] += 1
        key = f"{speaker_folder}/{count_of[speaker_folder]:04d}"
        path = folder / f"{key}.{audio_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        clip = read_rendered(request)
        if audio_format == "ogg":
            path.write_bytes(encode_opus(clip.pcm, SAMPLING_RATE))
        else:
            _link(request.path, path)
        manifests[row.split].append(
            {
                "key": key,
                "audio": f"{key}.{audio_format}",
                "text": request.sentence,
                "terms": [request.text] if row.is_term else [],
                "term_starts": [round(clip.start, 3)] if row.is_term else [],
                "term_ends": [round(clip.end, 3)] if row.is_term else [],
                "speaker": request.speaker,
                "language": "en",
                "engine": request.engine,
                "speed": request.speed,
                "seconds": round(len(clip.pcm) / SAMPLING_RATE, 3),
                "render_seconds": clip.render_s,
                **row.extra,
            }
        )
    return dict(manifests)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def read_corpus_report(folder: str | Path) -> dict[str, Any]:
    """The `synthesis.json` of a corpus that `write_corpus` made."""
    return json.loads((Path(folder) / REPORT_NAME).read_text(encoding="utf-8"))
