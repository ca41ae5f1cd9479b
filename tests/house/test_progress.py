"""Long work says how far it is, with or without a terminal."""

import io
import logging

from qwen_term_retrieval import progress
from qwen_term_retrieval.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with (
        caplog.at_level(logging.INFO),
        Progress(total=2000, desc="audio frames", unit="clip", file=io.StringIO()) as bar,
    ):
        bar.update(500)
    (record,) = caplog.records
    assert record.getMessage().startswith("audio frames: 500 of 2,000 clip, ")
    assert record.getMessage().endswith(" left")


def test_what_is_done_soon_says_nothing(caplog):
    with caplog.at_level(logging.INFO):
        assert list(Progress(range(3), desc="short", file=io.StringIO())) == [0, 1, 2]
    assert not caplog.records


def test_a_terminal_has_a_bar_and_no_lines(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    terminal = Terminal()
    with caplog.at_level(logging.INFO), Progress(total=2, desc="bar", file=terminal) as bar:
        bar.update(2)
    assert "bar: 100%" in terminal.getvalue()
    assert not caplog.records


def test_quiet_is_quiet(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    terminal = Terminal()
    with caplog.at_level(logging.INFO):
        assert list(Progress(range(3), shown=False, file=terminal)) == [0, 1, 2]
    assert (terminal.getvalue(), caplog.records) == ("", [])
