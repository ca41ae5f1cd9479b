"""Answers to the terminal, to a file, or to one file a recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from qwen_term_retrieval.audio.sources import is_url
from qwen_term_retrieval.retrieval.formats.formats import Format
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.inputs import Opened
from qwen_term_retrieval.retrieval.recordings.searching import Heard
from qwen_term_retrieval.storage.atomic import atomic_file, check_writable

Told = Iterable[tuple[Heard, list[TermMatch], bool]]
Write = Callable[[str], None]


def targets_of(
    recordings: Sequence[Opened], format: Format, out: str | Path | None, *, overwrite: bool = False
) -> dict[Opened, Path] | Path | None:
    """Where answers go: None is the terminal, a path one file for all, a mapping one file a recording.

    Args:
        recordings: all that are searched.
        format: of the answers.
        out: a folder where it ends in `/` or is one; else a file.
        overwrite: replace files that are there.

    Raises:
        ValueError: several recordings in one file of a format that does not say which a term was heard in.
        FileExistsError: a file is there already.
    """
    is_folder = out is not None and (str(out).endswith(("/", "\\")) or Path(out).is_dir())
    if not is_folder and not format.names_recording and len(recordings) > 1:
        raise ValueError(
            f"{format.suffix} files are of one recording, and there are {len(recordings)}: give a folder, --out FOLDER/"
        )
    if out is None:
        return None
    targets = _in_folder(recordings, format, Path(out)) if is_folder else Path(out)
    for target in targets.values() if isinstance(targets, dict) else [targets]:
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} is there already; give another place, or --overwrite")
        check_writable(target)
    return targets


def _in_folder(recordings: Sequence[Opened], format: Format, folder: Path) -> dict[Opened, Path]:
    """Names that differ: those of the recordings, with more of their paths where that takes it."""
    ways: list[Callable[[Opened], str]] = [
        lambda recording: _last_part(recording).stem,
        lambda recording: _last_part(recording).name,
        lambda recording: "_".join(part for part in PurePath(recording.name).parts if part not in ("/", "\\", "..")),
    ]
    names = [[way(each) + (f".{each.channel}" if each.channel else "") for each in recordings] for way in ways]
    counts = [Counter(of_way) for of_way in names]
    chosen: dict[Opened, Path] = {}
    taken: Counter[str] = Counter()
    for place, recording in enumerate(recordings):
        way = next((way for way in range(len(ways)) if counts[way][names[way][place]] == 1), len(ways) - 1)
        name = names[way][place]
        taken[name] += 1
        chosen[recording] = folder / f"{name}{'' if taken[name] == 1 else f'.{taken[name]}'}{format.suffix}"
    return chosen


def _last_part(recording: Opened) -> PurePath:
    return PurePath(recording.name.rpartition("/")[2] if is_url(recording.name) else recording.name)


def write_answers(told: Told, format: Format, targets: dict[Opened, Path] | Path | None, terminal: Write) -> int:
    """Write what is told, as it is told; returns how many recordings were heard to their ends.

    A file appears whole, when all that belongs in it is known.

    Args:
        told: what `search_recordings` yields.
        format: of the answers.
        targets: what `targets_of` gives.
        terminal: takes text that goes there.
    """
    if isinstance(targets, dict):
        return _write_each(told, format, targets)
    if targets is None:
        return _write_all(told, format, terminal)
    with _opened(targets) as write:
        return _write_all(told, format, write)


def _write_all(told: Told, format: Format, write: Write) -> int:
    done: list[Heard] = []
    num_heard = 0
    if format.head:
        write(f"{format.head}\n")
    for heard, new, at_end in told:
        num_heard += at_end
        if text := format.lines(heard, new, at_end):
            write(text)
        if at_end and format.document is not None:
            done.append(heard)
    if format.document is not None:
        write(format.document(done))
    return num_heard


def _write_each(told: Told, format: Format, targets: dict[Opened, Path]) -> int:
    num_heard = 0
    for heard, _, at_end in told:
        if not at_end:
            continue
        num_heard += 1
        with _opened(targets[heard.recording]) as write:
            if format.document is not None:
                write(format.document([heard]))
            else:
                # As if it were told now: a recording's heading, its matches, its end.
                parts = [([], False), (heard.matches, True)] if heard.is_each_time else [(heard.matches, True)]
                _write_all(((heard, matches, is_end) for matches, is_end in parts), format, write)
    return num_heard


@contextmanager
def _opened(path: Path) -> Iterator[Write]:
    with atomic_file(path, durable=False) as file:
        yield lambda text: file.write(text.encode("utf-8"))  # type: ignore[misc]
