"""Synthetic corpora: rows of (what to say, whether it is a term) become a folder of audio with a manifest a split.

The folder is what `read_corpus` and `qtr pack` read: `<split>.termaudio` (JSON Lines) beside `<split>/<speaker>/…`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen_term_retrieval.storage.staging import check_free, link_or_copy
from qwen_term_retrieval.synthesis.ogg import encode_opus
from qwen_term_retrieval.synthesis.rendering import RenderedClip, RenderReport, SpeechRequest, read_rendered, render
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

    FLAC files are hard links into the speech cache where the file system allows; Ogg files hold Opus. Manifests and
    audio depend on the rows and the engines alone. What it took (clips, seconds, voices and time of each engine, what
    could not be spoken, `made_from`) is in `synthesis.json` beside them.

    Raises:
        FileExistsError: if `out` exists and `overwrite` is not set, or holds no synthetic corpus.
        ValueError: if there are no rows, or from `render`.
    """
    out = Path(out)
    # A manifest is no sign: recordings have one too.
    check_free(out, "a synthetic corpus", REPORT_NAME, overwrite=overwrite)
    if not rows:
        raise ValueError(f"no rows to synthesise for {out}")
    requests = [row.request for row in rows]
    report = render(requests, num_workers=num_workers, on_error=on_error, show_progress=show_progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        spoken = [(row, read_rendered(row.request)) for row in rows if row.request.path.is_file()]
        for split, lines in _write_audio(spoken, folder, audio_format).items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{split}.termaudio").write_text(text, encoding="utf-8")
        summary = {"made_from": dict(made_from or {}), **_describe(spoken, report)}
        (folder / REPORT_NAME).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        folder.rename(out)
    return report


def _write_audio(
    spoken: Iterable[tuple[CorpusRow, RenderedClip]], folder: Path, audio_format: str
) -> dict[str, list[dict[str, Any]]]:
    """Write the audio files; the manifests' lines by split."""
    manifests: dict[str, list[dict[str, Any]]] = defaultdict(list)
    count_of: Counter[str] = Counter()
    for row, clip in spoken:
        speaker_folder = f"{row.split}/{row.request.speaker}"
        count_of[speaker_folder] += 1
        key = f"{speaker_folder}/{count_of[speaker_folder]:04d}"
        path = folder / f"{key}.{audio_format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if audio_format == "ogg":
            path.write_bytes(encode_opus(clip.pcm, SAMPLING_RATE))
        else:
            link_or_copy(row.request.path, path)
        manifests[row.split].append({"key": key, "audio": f"{key}.{audio_format}", **_describe_clip(row, clip)})
    return dict(manifests)


def _describe_clip(row: CorpusRow, clip: RenderedClip) -> dict[str, Any]:
    return {
        "text": row.request.sentence,
        "terms": [row.request.text] if row.is_term else [],
        "term_starts": [round(clip.start, 3)] if row.is_term else [],
        "term_ends": [round(clip.end, 3)] if row.is_term else [],
        "speaker": row.request.speaker,
        "language": "en",
        "engine": row.request.engine,
        **row.extra,
    }


def _describe(spoken: Sequence[tuple[CorpusRow, RenderedClip]], report: RenderReport) -> dict[str, Any]:
    """Counts for the report file: clips, seconds of audio and of rendering, and voices of each engine."""
    engines: dict[str, Counter[str]] = defaultdict(Counter)
    for row, clip in spoken:
        added = {"clips": 1, "seconds": len(clip.pcm) / SAMPLING_RATE, "render_seconds": clip.render_s}
        engines[row.request.engine].update(added)
    speakers = {row.request.speaker: row.request.engine for row, _ in spoken}
    voices = Counter(speakers.values())
    return {
        "splits": Counter(row.split for row, _ in spoken),
        "engines": {
            name: {key: round(value, 1) for key, value in counts.items()} | {"voices": voices[name]}
            for name, counts in sorted(engines.items())
        },
        "wall_seconds": round(report.wall_s, 1),
        "not_spoken": [{"text": text, "reason": reason} for text, reason in report.failed],
    }
