"""Text into a folder of token ids: tokenize in parallel, lay the ids into shards, publish the whole at once.

Everything is made in `<out>.incomplete/` and renamed to `<out>` as the last step, so a folder is whole or not there.
A killed run keeps the parts it has; a part goes as soon as its shards are sealed, so the disk holds the ids about once.

Documents go to the tokenizer whole, however long: cut by characters, they would give other tokens at the cut. The
bytes follow from the texts, the tokenizer and the settings alone: not from the number of workers, from interruptions or
from the clock. Memory holds the texts of a few parts a worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.checksums import file_xxh64
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of
from qwen_term_retrieval.tokens.parts import TokenizerSettings, TokenPartJob, TokenPartResult, make_token_part
from qwen_term_retrieval.tokens.sealing import seal_token_shards, sealing_folder, write_documents
from qwen_term_retrieval.tokens.sources import Document, find_columns, read_documents, text_files
from qwen_term_retrieval.tokens.token_pack import (
    DOCUMENTS,
    HEADER_BYTES,
    TOKENIZER,
    TOKENS_JSON,
    TokenShardHeader,
    token_shard_name,
    write_tokens_json,
)
from qwen_term_retrieval.tokens.tokenizer import AUTO, PackingTokenizer
from qwen_term_retrieval.workers import MapExecutor, results_in_order, worker_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SHARD_BYTES = 2 << 30
_CHARS_PER_PART = 1 << 20
_DOCUMENTS_PER_PART = 1 << 14


@dataclass(frozen=True)
class TokenPackSummary:
    """What packing made. `num_empty` documents had no text in one of the columns, and were left out."""

    folder: Path
    num_tokens: int
    num_documents: int
    num_empty: int
    num_shards: int
    num_bytes: int
    dtype: str
    seconds: float

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.num_tokens} tokens of {self.num_documents} documents in {self.num_shards} shards of "
            f"{self.dtype} ({self.num_bytes / 1e6:.1f} MB), {self.seconds:.1f} s"
        )
        return text + (f"; {self.num_empty} empty documents were left out" if self.num_empty else "")


def pack_tokens(
    source: str | Path | Iterable[str | Path],
    out: str | Path,
    tokenizer: str | Path | tokenizers.Tokenizer | PreTrainedTokenizerBase,
    *,
    columns: Sequence[str] | None = None,
    dtype: str = AUTO,
    eos: str | None = AUTO,
    separator: str | None = None,
    spelled_is_text: bool = False,
    num_workers: int | None = None,
    executor: Executor | MapExecutor | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    quiet: bool = False,
) -> TokenPackSummary:
    """Tokenize text into the folder `out`, which `MmapTokens` reads.

    Run again after a crash or kill, it goes on where it was, to the same bytes. The tokenizer adds no special tokens of
    its own.

    Args:
        source: Parquet or JSON Lines files (`.jsonl`, `.jsonl.gz`), or folders of them; read in the order of paths.
        tokenizer: Hub id, folder, `tokenizer.json`, or an object of `transformers` or `tokenizers`.
        columns: that hold the text, laid one after another to make a document; None: `text`, or `prompt` and
            `response`, whichever the first file has.
        dtype: "uint16", "uint32", or "auto": the smaller one that holds the vocabulary.
        eos: token at the end of each document; "auto": the tokenizer's eos or else sep token; None: none.
        separator: token between two columns; None: none. `documents.npy` knows where each column starts.
        spelled_is_text: a special token spelled out in a text (`</s>`) is read as its letters, not as the token.
        num_workers: worker processes; None: one a core, 1: work in this process.
        executor: any `concurrent.futures.Executor`, or a `MapExecutor` over `make_token_part`, instead; its workers see
            the folder of `out`.
        shard_bytes: size of a shard file; the last one may be smaller.
        overwrite: replace the tokens that are at `out`.
        quiet: no progress bar.

    Raises:
        CorpusError: bad row, file or column; with file, row and remedy.
        FileExistsError: `out` exists.
        FileNotFoundError: `source` does not.
        PackError: another process packs into `out`, a worker died, or the disk is full.
        ValueError: a tokenizer that is not fast, has ids that do not fit the dtype, or lacks a token named.
    """
    started = time.perf_counter()
    out = Path(out).absolute()
    check_free(out, "a folder of tokens", TOKENS_JSON, overwrite=overwrite)
    files = text_files(source)
    packing_tokenizer = PackingTokenizer.of(tokenizer, dtype=dtype, eos=eos, separator=separator)
    dtype = packing_tokenizer.dtype
    shard_tokens = (shard_bytes - HEADER_BYTES) // np.dtype(dtype).itemsize
    if shard_tokens < 1:
        raise ValueError(f"shard_bytes={shard_bytes}; a shard needs more than its header of {HEADER_BYTES} bytes")
    names = find_columns(files[0], columns)
    with staging_of(out) as staging:
        parts = staging / "parts"
        parts.mkdir(exist_ok=True)
        settings = _settings(packing_tokenizer, len(names), staging, spelled_is_text)
        with worker_pool(executor, num_workers) as pool:
            results = _make_parts(files, names, parts, settings, pool, quiet)
        num_empty = sum(result.num_empty for result in results)
        num_documents = sum(result.num_documents for result in results)
        if not any(result.num_tokens for result in results):
            raise CorpusError(f"{files[0]}{' …' if files[1:] else ''}: no text to pack ({num_empty} empty documents)")
        if num_empty:
            logger.warning("%d documents have no text in one of the columns %s; left out", num_empty, ", ".join(names))
        folder = sealing_folder(staging, results, shard_tokens)
        headers = seal_token_shards(parts, results, folder, shard_tokens, dtype, quiet=quiet)
        write_documents(parts, len(results), folder / DOCUMENTS, num_documents * len(names))
        settings.path.replace(folder / TOKENIZER)
        _finish(
            folder,
            headers,
            {
                "dtype": dtype,
                "num_tokens": sum(header.num_tokens for header in headers),
                "num_documents": num_documents,
                "num_empty": num_empty,
                "columns": list(names),
                "tokenizer": packing_tokenizer.as_json(),
                "shard_tokens": shard_tokens,
            },
        )
        publish(folder, out)
    return TokenPackSummary(
        folder=out,
        num_tokens=sum(header.num_tokens for header in headers),
        num_documents=num_documents,
        num_empty=num_empty,
        num_shards=len(headers),
        num_bytes=sum(header.num_bytes for header in headers),
        dtype=dtype,
        seconds=time.perf_counter() - started,
    )


def _settings(tokenizer: PackingTokenizer, num_columns: int, staging: Path, spelled_is_text: bool) -> TokenizerSettings:
    # The hash in its name lets workers keep the tokenizer of a path: another tokenizer has another path.
    path = staging / f"{tokenizer.sha256}.json"
    with atomic_file(path) as file:
        file.write(tokenizer.definition.encode())
    after = (*[tokenizer.separator_ids] * (num_columns - 1), tokenizer.eos_ids)
    return TokenizerSettings(path, tokenizer.sha256, after, tokenizer.dtype, spelled_is_text)


def _make_parts(
    files: list[Path],
    columns: tuple[str, ...],
    parts: Path,
    settings: TokenizerSettings,
    pool: Executor | MapExecutor | None,
    quiet: bool,
) -> list[TokenPartResult]:
    results: list[TokenPartResult] = []
    num_documents = num_tokens = 0
    total = sum(path.stat().st_size for path in files)
    jobs = _jobs(files, columns, parts, settings)
    with Progress(desc="tokenizing", total=total, unit="B", unit_scale=True, shown=not quiet) as progress:
        for result in results_in_order(make_token_part, jobs, pool):
            results.append(result)
            num_documents += result.num_documents
            num_tokens += result.num_tokens
            seconds = max(progress.format_dict["elapsed"], 1e-3)
            progress.set_postfix_str(
                f"{num_documents / seconds:.0f} documents/s, {num_tokens / seconds:.0f} tokens/s", refresh=False
            )
            progress.update(result.progress - progress.n)
    return results


def _jobs(
    files: list[Path], columns: tuple[str, ...], parts: Path, settings: TokenizerSettings
) -> Iterator[TokenPartJob]:
    sizes = {path: path.stat().st_size for path in files}
    before = 0
    batch = _Batch()
    number = 0
    for path in files:
        for document in read_documents(path, columns):
            batch.add(document)
            if batch.num_chars >= _CHARS_PER_PART or len(batch.places) >= _DOCUMENTS_PER_PART:
                progress = before + int(document.progress * sizes[path])
                yield TokenPartJob(number, parts, batch.texts, batch.places, batch.num_empty, settings, progress)
                batch = _Batch()
                number += 1
        before += sizes[path]
    if batch.places or batch.num_empty:
        yield TokenPartJob(number, parts, batch.texts, batch.places, batch.num_empty, settings, before)


class _Batch:
    """Documents gathered for a part."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.places: list[tuple[Path, int]] = []
        self.num_chars = 0
        self.num_empty = 0

    def add(self, document: Document) -> None:
        texts = [text for text in document.texts if text]
        if len(texts) < len(document.texts):
            self.num_empty += 1
            return
        self.texts += texts
        self.places.append((document.path, document.row))
        self.num_chars += sum(map(len, texts))


def _finish(folder: Path, headers: list[TokenShardHeader], content: dict[str, Any]) -> None:
    """Write `tokens.json`, and drop what a killed run may have left beside it."""
    shards = [token_shard_name(number) for number in range(len(headers))]
    for path in folder.iterdir():
        if path.name not in {*shards, DOCUMENTS, TOKENIZER}:
            path.unlink()
    write_tokens_json(
        folder,
        {
            **content,
            "shards": [
                {"file": name, "tokens": header.num_tokens, "bytes": header.num_bytes, "xxh64": f"{header.xxh64:016x}"}
                for name, header in zip(shards, headers, strict=True)
            ],
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "xxh64": file_xxh64(folder / name)}
                for name in (DOCUMENTS, TOKENIZER)
            },
            "made": {"qwen_term_retrieval": version("qwen_term_retrieval"), "tokenizers": tokenizers.__version__},
        },
    )
