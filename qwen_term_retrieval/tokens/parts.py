"""A part: the token ids of a batch of consecutive documents, the unit of parallel work and of resuming.

A worker writes `part_N.bin`, the ids, then `part_N.npz`: how many each text has, the checksum of the ids, and a
signature of all that went in (texts, tokenizer, settings). A part that is there with the right ones is not made again.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
import xxhash

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.checksums import file_xxh64
from qwen_term_retrieval.tokens.token_pack import FORMAT_VERSION

_CHARS_PER_CALL = 1 << 17


@dataclass(frozen=True)
class TokenizerSettings:
    """How texts become ids: the tokenizer's file and its sha256, the ids laid after each column, and the ids' dtype.

    Where `spelled_is_text`, a special token spelled out in a text is read as its letters.
    """

    path: Path
    sha256: str
    ids_after_column: tuple[tuple[int, ...], ...]
    dtype: str
    spelled_is_text: bool = False


@dataclass(frozen=True)
class TokenPartJob:
    """Work order of one part; it pickles, and needs nothing but a folder that worker and caller both see.

    `texts` go through the columns of the first document, then of the second …; `places` has file and row of each
    document. `num_empty` documents among them had no text; `progress` counts the source's bytes up to the part's end.
    """

    number: int
    folder: Path
    texts: list[str]
    places: list[tuple[Path, int]]
    num_empty: int
    settings: TokenizerSettings
    progress: int


@dataclass(frozen=True)
class TokenPartResult:
    """What became of a part; `num_empty` and `progress` are the job's."""

    num_documents: int
    num_empty: int
    num_tokens: int
    progress: int
    signature: str


def ids_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.bin"


def lengths_path(folder: Path, number: int) -> Path:
    return folder / f"part_{number:07d}.npz"


def read_lengths(folder: Path, number: int) -> np.ndarray:
    """How many ids each text of a finished part has: int64 (num_texts,)."""
    with np.load(lengths_path(folder, number), allow_pickle=False) as arrays:
        return arrays["lengths"]


def make_token_part(job: TokenPartJob) -> TokenPartResult:
    """Tokenize the texts of a job into its part, unless the same part is there already.

    Raises:
        CorpusError: a text that cannot be written as UTF-8; names file and row.
    """
    signature = _signature(job)
    num_tokens = _finished_before(job, signature)
    if num_tokens is None:
        num_tokens = _write_part(job, signature)
    return TokenPartResult(len(job.places), job.num_empty, num_tokens, job.progress, signature)


def _finished_before(job: TokenPartJob, signature: str) -> int | None:
    try:
        with np.load(lengths_path(job.folder, job.number), allow_pickle=False) as arrays:
            num_tokens, made_from, xxh64 = int(arrays["lengths"].sum()), str(arrays["signature"]), str(arrays["xxh64"])
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None
    ids = ids_path(job.folder, job.number)
    # Ids that are gone were sealed into a shard.
    return num_tokens if made_from == signature and (not ids.exists() or file_xxh64(ids) == xxh64) else None


def _write_part(job: TokenPartJob, signature: str) -> int:
    tokenizer = _load_tokenizer(job.settings.path)
    tokenizer.encode_special_tokens = job.settings.spelled_is_text
    dtype = np.dtype(job.settings.dtype).newbyteorder("<")
    lengths: list[int] = []
    digest = xxhash.xxh64()
    # Not waiting for the disk, since a part that a power cut spoils is known by its checksum and made again.
    with atomic_file(ids_path(job.folder, job.number), durable=False) as file:
        for texts in _calls(job.texts):
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            pieces: list[Sequence[int]] = []
            for encoding in encodings:
                after = job.settings.ids_after_column[len(lengths) % len(job.settings.ids_after_column)]
                pieces += (encoding.ids, after)
                lengths.append(len(encoding) + len(after))
            ids = np.fromiter(chain.from_iterable(pieces), dtype)
            file.write(ids.data)
            digest.update(ids.data)
    with atomic_file(lengths_path(job.folder, job.number), durable=False) as file:
        np.savez(file, lengths=np.array(lengths, np.int64), signature=signature, xxh64=digest.hexdigest())
    return sum(lengths)


def _calls(texts: list[str]) -> Iterator[list[str]]:
    """Whole texts in groups: a tokenizer's working memory is a hundred times that of the ids it returns."""
    group: list[str] = []
    num_chars = 0
    for text in texts:
        group.append(text)
        num_chars += len(text)
        if num_chars >= _CHARS_PER_CALL:
            yield group
            group, num_chars = [], 0
    if group:
        yield group


def _signature(job: TokenPartJob) -> str:
    settings = job.settings
    digest = xxhash.xxh3_128()
    how = (FORMAT_VERSION, tokenizers.__version__, settings.sha256, settings.ids_after_column, settings.dtype)
    digest.update(repr((*how, "spelled") if settings.spelled_is_text else how).encode())
    for number, text in enumerate(job.texts):
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            path, row = job.places[number // len(settings.ids_after_column)]
            raise CorpusError(
                f"{path}, row {row}: holds half of a surrogate pair ({error.reason}) at character {error.start}; "
                "mend or drop the row"
            ) from error
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if multiprocessing.parent_process() is not None:
        # One process a core: a tokenizer's own threads would only fight, and after a fork it warns of them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return tokenizers.Tokenizer.from_file(str(path))
