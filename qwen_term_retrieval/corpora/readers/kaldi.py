"""Kaldi data folders: `wav.scp`, and beside it, as far as they are there, `segments`, `text`, `utt2spk`, `utt2lang`.

Kaldi has no notion of terms; `utt2terms` is ours: an utterance's id, then its terms split by `|`.

https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from qwen_term_retrieval.corpora.locations import Location, found_from, is_file, joined, path_of, text_lines, walk
from qwen_term_retrieval.corpora.row_rules import RowRules, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, split_of_path, split_rank
from qwen_term_retrieval.errors import CorpusError

WAV_SCP = "wav.scp"
SEGMENTS = "segments"


@dataclass(frozen=True)
class _Segment:
    utterance: str
    where: str
    start: str = "0"
    end: str | None = None
    channel: str | None = None


def read_kaldi(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the utterances of a data folder, or of all data folders below one (`data/train`, `data/dev`, …).

    Keys are utterance ids. The segments of one recording follow each other, whatever their ids. The small files are
    held in memory, about 500 bytes an utterance.

    Raises:
        CorpusError: a `wav.scp` with commands (`… |`) or archives, a segment of a recording that is not there.
    """
    for place in data_folders(folder):
        yield from _read_data_folder(place, rules)


def data_folders(folder: Location) -> list[Location]:
    """The folder itself, if it holds a `wav.scp`, and those below it that do, split by split.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [PurePosixPath(name).parent for name in walk(folder) if PurePosixPath(name).name == WAV_SCP]
    if not found:
        raise FileNotFoundError(f"{folder} holds no {WAV_SCP}, so it is no Kaldi data folder")
    found.sort(key=lambda place: split_rank(split_of_path(place / "_") or "train"))
    return [folder if str(place) == "." else joined(folder, str(place)) for place in found]


def _read_data_folder(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    recordings = _table(folder, WAV_SCP)
    segments = _segments(folder, recordings)
    texts, speakers, languages, terms = (
        _table(folder, name) if is_file(joined(folder, name)) else {}
        for name in ("text", "utt2spk", "utt2lang", "utt2terms")
    )
    split = split_of_path(PurePosixPath(path_of(folder).name, "_"))
    for recording, (line, where) in recordings.items():
        audio = found_from(folder, _audio_path(line, where))
        for segment in segments.get(recording, ()):
            key = segment.utterance
            row = {
                "key": key,
                "audio": audio,
                "text": texts.get(key, ("", ""))[0],
                "terms": terms[key][0].split("|") if terms.get(key, ("",))[0] else [],
                "speaker": speakers.get(key, (None,))[0],
                "language": languages.get(key, (None,))[0],
                "clip_start": segment.start,
                "clip_end": segment.end,
                "clip_channel": segment.channel,
            }
            yield to_utterance(row, segment.where, folder, rules, folder_split=split)


def _table(folder: Location, name: str) -> dict[str, tuple[str, str]]:
    """`{id: (rest of its line, where)}`, in the file's order."""
    file = joined(folder, name)
    table: dict[str, tuple[str, str]] = {}
    for number, line in text_lines(file):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        key, *rest = line.split(maxsplit=1)
        if key in table:
            raise CorpusError(f"{where}: {key!r} stood in an earlier line already; keep one (utils/fix_data_dir.sh)")
        table[key] = (rest[0].strip() if rest else "", where)
    return table


def _audio_path(line: str, where: str) -> str:
    if line.endswith("|"):
        raise CorpusError(
            f"{where}: {line[:60]!r} is a command, and none is run here. Write the recordings to files first: "
            "wav-copy scp:wav.scp scp:files.scp, or run each command into a .wav and put that path here."
        )
    if not line:
        raise CorpusError(f"{where}: an id without a path; give the path of its recording")
    path, _, offset = line.rpartition(":")
    if path and offset.isdigit() and not path.endswith(":/"):
        raise CorpusError(f"{where}: {line[:60]!r} lies in a Kaldi archive; copy it to a file: wav-copy scp:… scp:…")
    return line


def _segments(folder: Location, recordings: dict[str, tuple[str, str]]) -> dict[str, list[_Segment]]:
    """Segments by recording; without a file `segments` every recording is one utterance of its own id."""
    file = joined(folder, SEGMENTS)
    if not is_file(file):
        return {key: [_Segment(key, where)] for key, (_, where) in recordings.items()}
    segments: dict[str, list[_Segment]] = {}
    for number, line in text_lines(file):
        where = f"{file}, line {number}"
        cells = line.split()
        if not cells:
            continue
        if len(cells) not in (4, 5):
            raise CorpusError(f"{where}: {len(cells)} cells; a segment has an id, a recording, a start and an end")
        utterance, recording, start, end = cells[:4]
        if recording not in recordings:
            raise CorpusError(f"{where}: recording {recording!r} is not in {WAV_SCP}; add it, or drop the segment")
        # Kaldi writes -1 for the end of the recording.
        to_end = end in ("-1", "-1.0")
        channel = cells[4] if len(cells) == 5 else None
        segment = _Segment(utterance, where, start, None if to_end else end, channel)
        segments.setdefault(recording, []).append(segment)
    return segments
