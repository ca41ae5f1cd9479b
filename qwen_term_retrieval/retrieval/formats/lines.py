"""Formats with one line a match, which are written while a recording is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.searching import Heard

CSV_COLUMNS = ("clip", "channel", "term", "score", "probability", "start", "end", "language")


def heading(heard: Heard, told: Sequence[TermMatch], at_end: bool) -> str:
    """Above the terms of a recording, for people: of a clip with their number, and the nearest where there is none."""
    if not heard.is_each_time:
        count = "1 term" if len(told) == 1 else f"{len(told)} terms"
        return f"{heard.recording}: {count}{_near_miss(heard)}"
    return "" if told or at_end else f"{heard.recording}:"


def text_line(_heard: Heard, match: TermMatch) -> str:
    """For people: a term, its confidence, and its times in seconds."""
    shown = f"{match.term} ({match.language})" if match.language else match.term
    return f"  {shown:<40} {match.confidence:6.3f} {match.start:9.2f} – {match.end:.2f} s"


def json_line(heard: Heard, match: TermMatch) -> str:
    """JSON Lines, an object a match: `clip`, `term`, `score`, `start`, `end`; where known, `probability` and more."""
    return json.dumps({"clip": heard.recording.name, **_channel(heard), **match_record(match)}, ensure_ascii=False)


def csv_line(heard: Heard, match: TermMatch) -> str:
    """CSV (RFC 4180), with the columns `CSV_COLUMNS`; what is not known is empty."""
    row = {"clip": heard.recording.name, **_channel(heard), **match_record(match)}
    return _csv([row.get(name, "") for name in CSV_COLUMNS])


def csv_head() -> str:
    return _csv(CSV_COLUMNS)


def audacity_line(_heard: Heard, match: TermMatch) -> str:
    """Labels as Audacity imports them: start, end and term, with tabs between them."""
    return f"{match.start:.6f}\t{match.end:.6f}\t{one_line(match.term)}"


def rttm_line(heard: Heard, match: TermMatch) -> str:
    """RTTM (NIST, Rich Transcription 2009): a line `SPEAKER` a match, for that is what its readers read.

    Its name is the term, and its confidence ours. Fields have no spaces: `_` stands for them.
    """
    channel = 1 + (heard.recording.recording.channel or 0)
    return (
        f"SPEAKER {_field(heard.recording.name)} {channel} {match.start:.3f} {match.end - match.start:.3f} <NA> <NA> "
        f"{_field(match.term)} {match.confidence:.4f} <NA>"
    )


def match_record(match: TermMatch) -> dict[str, Any]:
    """What JSON says of a match; times in seconds."""
    record: dict[str, Any] = {"term": match.term, "score": round(match.score, 4)}
    record |= {} if match.probability is None else {"probability": round(match.probability, 4)}
    return record | {"start": match.start, "end": match.end} | ({"language": match.language} if match.language else {})


def one_line(text: str) -> str:
    return " ".join(text.split())


def _field(text: str) -> str:
    return "_".join(text.split()) or "_"


def _csv(row: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(row)
    return line.getvalue()


def _channel(heard: Heard) -> dict[str, Any]:
    return {} if heard.recording.channel is None else {"channel": heard.recording.channel}


def _near_miss(heard: Heard) -> str:
    nearest = heard.nearest
    if heard.threshold is None or nearest is None or heard.matches:
        return ""
    return f" (best: {nearest.term} {nearest.confidence:.3f}, threshold {heard.threshold:.3f})"
