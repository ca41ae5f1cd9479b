"""Tar shards in WebDataset layout: the members of one base name are a sample.

    train-000000.tar:  POD/0001.flac  POD/0001.json  POD/0002.flac  POD/0002.txt  …

Only headers and small text members are read here. The audio stays where it is: an utterance names its slice of the tar,
and the worker that packs it reads just that.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_term_retrieval.audio.sources import AUDIO_SUFFIXES, FileSlice
from qwen_term_retrieval.corpora.locations import Location, walk
from qwen_term_retrieval.corpora.readers.json_rows import parsed_json
from qwen_term_retrieval.corpora.row_rules import COLUMNS, RowRules, key_of_path, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, split_of_path, split_rank
from qwen_term_retrieval.errors import CorpusError

_COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
TAR_SUFFIXES = (".tar", *_COMPRESSED)
MAX_TEXT_BYTES = 1 << 24


def read_webdataset(source: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the samples of a tar, or of all tars below a folder, in the order of the files' names.

    A sample is one audio member (by suffix), `.json` (columns as in any manifest, without the audio), `.txt` (the text)
    and `.cls` (a class, kept as a column `cls`). Its key is the members' base name, unless the JSON has a `key`.

    Raises:
        CorpusError: compressed, broken or remote tars; samples without audio, or with several.
    """
    if isinstance(source, str):
        raise CorpusError(f"{source}: tars are read where they lie; download them and give the local folder")
    for tar, split in find_tars(source):
        yield from _read_tar(tar, rules, split)


def find_tars(source: Path) -> list[tuple[Path, str | None]]:
    """A tar, or all tars below a folder, split by split, each with the split that its name tells.

    Raises:
        FileNotFoundError: there is none.
    """
    if source.is_file():
        return [(source, split_of_path(PurePosixPath(source.name)))]
    names = [name for name in walk(source) if name.endswith(TAR_SUFFIXES)]
    if not names:
        raise FileNotFoundError(f"{source} holds no .tar")
    tars = [(source / name, split_of_path(PurePosixPath(name))) for name in names]
    return sorted(tars, key=lambda tar: split_rank(tar[1] or "train"))


def _read_tar(path: Path, rules: RowRules, split: str | None) -> Iterator[Utterance]:
    for base, members in groupby(tar_members(path), key=lambda member: _base_and_suffix(member[0])[0]):
        where = f"{path}, sample {base!r}"
        row: dict[str, Any] = {}
        for name, content in members:
            suffix = _base_and_suffix(name)[1]
            if isinstance(content, FileSlice):
                if "audio" in row:
                    raise CorpusError(f"{where}: two members of audio; keep one a sample, or rename the others' suffix")
                row["audio"] = content
            elif suffix == ".json":
                row |= _json_member(content, where)
            elif suffix == ".txt":
                row["text"] = content.strip()
            else:
                row[suffix.lstrip(".")] = content.strip()
        if "audio" not in row:
            raise CorpusError(
                f"{where}: no member of audio beside the others. Members of a sample must follow each other (tar "
                f"--sort=name); known suffixes are {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
        if not row.get(rules.columns.get("key", "key")):
            row[rules.columns.get("key", "key")] = key_of_path(base, "", rules, where)
        yield to_utterance(row, where, path.parent, rules, folder_split=split)


def tar_members(path: Path) -> Iterator[tuple[str, FileSlice | str]]:
    """Name and content of the members that count: audio as slices, text as text.

    Raises:
        CorpusError: a tar that is compressed or broken.
    """
    if path.name.endswith(_COMPRESSED):
        raise CorpusError(f"{path}: a compressed tar cannot be read by slices; unpack it to a plain .tar (gunzip)")
    try:
        # "r:" refuses compressed tars, whatever their names.
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                # TarFile keeps every header it has seen; typeshed does not know the list.
                tar.members.clear()  # type: ignore[attr-defined]
                _, suffix = _base_and_suffix(member.name)
                if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
                    continue
                if suffix in AUDIO_SUFFIXES:
                    if member.issparse():
                        raise CorpusError(
                            f"{path}, member {member.name!r}: stored sparse; make the tar without --sparse"
                        )
                    yield member.name, FileSlice(path, member.offset_data, member.size, suffix)
                elif suffix in (".json", ".txt", ".cls"):
                    yield member.name, _text(tar, member, path)
            _check_end(path, tar.offset)
    except tarfile.TarError as error:
        raise CorpusError(f"{path}: not readable as a plain tar ({error}); make it anew, uncompressed") from error


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    where = f"{path}, member {member.name!r}"
    if member.size > MAX_TEXT_BYTES:
        raise CorpusError(f"{where}: {member.size} bytes of text; the limit is {MAX_TEXT_BYTES}")
    file = tar.fileobj
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8. Save the text as UTF-8.") from error


def _check_end(path: Path, offset: int) -> None:
    """A broken header ends the iteration of tarfile (3.11) like the end of the archive: in silence."""
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise CorpusError(f"{path}: no header at byte {offset}, where the next member should start; make it anew")


def _base_and_suffix(name: str) -> tuple[str, str]:
    """WebDataset's rule: the suffix starts at the first dot of the file's name; its last part tells the format."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    base, _, suffix = file.partition(".")
    return folder + slash + base, "." + suffix.rpartition(".")[2].lower()


def _json_member(text: str, where: str) -> dict[str, Any]:
    row = parsed_json(text, f"{where}, .json")
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: its .json holds {type(row).__name__}; give an object with columns")
    # The audio is the member; what the row calls its file is where it came from.
    return {name: value for name, value in row.items() if name not in COLUMNS["audio"]}
