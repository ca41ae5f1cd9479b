"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_term_retrieval.did_you_mean import did_you_mean
from qwen_term_retrieval.retrieval.formats import documents, lines
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.searching import Heard


@dataclass(frozen=True)
class Format:
    """A format of answers: written line by line while a recording is read, or as a document after it.

    suffix: of its files. names_recording: whether it says which recording a match is of, so that one file may hold
    several. head: first line. heading: above what is told of a recording, if that is its first. line: of a match.
    document: of recordings that are at their end.
    """

    suffix: str
    names_recording: bool
    head: str = ""
    heading: Callable[[Heard, Sequence[TermMatch], bool], str] | None = None
    line: Callable[[Heard, TermMatch], str] | None = None
    document: Callable[[Sequence[Heard]], str] | None = None

    def lines(self, heard: Heard, told: Sequence[TermMatch], at_end: bool) -> str:
        """What is to be written when this was told."""
        above = "" if self.heading is None else self.heading(heard, told, at_end)
        lines = [above] if above else []
        if self.line is not None:
            lines += [self.line(heard, match) for match in told]
        return "".join(f"{line}\n" for line in lines)


FORMATS = {
    "text": Format(".txt", True, heading=lines.heading, line=lines.text_line),
    "json": Format(".json", True, document=documents.json_document),
    "jsonl": Format(".jsonl", True, line=lines.json_line),
    "csv": Format(".csv", True, head=lines.csv_head(), line=lines.csv_line),
    "srt": Format(".srt", False, document=documents.srt_document),
    "vtt": Format(".vtt", False, document=documents.vtt_document),
    "audacity": Format(".labels.txt", False, line=lines.audacity_line),
    "textgrid": Format(".TextGrid", False, document=documents.textgrid_document),
    "rttm": Format(".rttm", True, line=lines.rttm_line),
}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"format={name!r} is none of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]
