"""Formats that are one document, written when all that goes into it was heard."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from qwen_term_retrieval.retrieval.formats.lines import match_record, one_line
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.searching import Heard

# Nothing is shown for less, and readers refuse a cue that ends where it begins.
_LEAST_SECONDS = 0.001


def json_document(recordings: Sequence[Heard]) -> str:
    """A list with one object a recording: `clip`, `seconds` and its `matches`, see `match_record`."""
    rows = []
    for heard in recordings:
        row = {"clip": heard.recording.name, "channel": heard.recording.channel, "seconds": _rounded(heard.seconds)}
        known = {name: value for name, value in row.items() if value is not None}
        rows.append(known | {"matches": [match_record(match) for match in heard.matches]})
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def srt_document(recordings: Sequence[Heard]) -> str:
    """SubRip: numbered cues; the term is the text."""
    cues = [
        f"{number}\n{_clock(match.start, ',')} --> {_clock(_end(match), ',')}\n{_cue_text(match)}\n"
        for number, match in enumerate(_in_order(recordings), start=1)
    ]
    return "\n".join(cues)


def vtt_document(recordings: Sequence[Heard]) -> str:
    """WebVTT (W3C, 2019): cues; the term, with `&`, `<` and `>` escaped, is the text."""
    cues = [
        f"\n{_clock(match.start, '.')} --> {_clock(_end(match), '.')}\n{html.escape(_cue_text(match), quote=False)}\n"
        for match in _in_order(recordings)
    ]
    return "WEBVTT\n" + "".join(cues)


def textgrid_document(recordings: Sequence[Heard]) -> str:
    """Praat's TextGrid, long form: intervals that cover the recording; terms that overlap stand in tiers of their own.

    Interval tiers have no gaps and no overlaps: what lies between terms is an interval without text.
    """
    matches = _in_order(recordings)
    tiers: list[list[TermMatch]] = [[]]
    for match in matches:
        free = next((tier for tier in tiers if not tier or tier[-1].end <= match.start), None)
        if free is None:
            tiers.append(free := [])
        free.append(match)
    end = max([_LEAST_SECONDS, *(heard.seconds or 0.0 for heard in recordings), *(_end(match) for match in matches)])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, tier in enumerate(tiers, start=1):
        intervals = _covering(tier, end)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "terms {number}"']
        lines += ["        xmin = 0", f"        xmax = {end:.6f}", f"        intervals: size = {len(intervals)}"]
        for place, (low, high, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {low:.6f}",
                f"            xmax = {high:.6f}",
            ]
            lines += [f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _covering(tier: Sequence[TermMatch], end: float) -> list[tuple[float, float, str]]:
    intervals: list[tuple[float, float, str]] = []
    now = 0.0
    for match in tier:
        if match.start > now:
            intervals.append((now, match.start, ""))
        now = _end(match)
        intervals.append((match.start, now, one_line(match.term)))
    if now < end:
        intervals.append((now, end, ""))
    return intervals


def _in_order(recordings: Sequence[Heard]) -> list[TermMatch]:
    return sorted(
        (match for heard in recordings for match in heard.matches), key=lambda match: (match.start, match.end)
    )


def _end(match: TermMatch) -> float:
    return max(match.end, match.start + _LEAST_SECONDS)


def _cue_text(match: TermMatch) -> str:
    return one_line(match.term).replace("-->", "→")  # an arrow ends a cue's text


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
