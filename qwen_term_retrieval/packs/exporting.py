"""A pack back into what everybody reads: audio files with a `metadata.jsonl`, or Parquet with the audio inside.

Both are lossless, and a corpus again: packed anew they give the same samples and rows. The Parquet dataset has the
stock `datasets.Audio` feature and loads where this library is not installed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import soundfile
from pyarrow import parquet

from qwen_term_retrieval.corpora.corpus import SeenKeys
from qwen_term_retrieval.packs.feature import Clip
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.row_schema import conformed
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of

FORMATS = ("wav", "flac", "dataset")
METADATA = "metadata.jsonl"
# Only an export has it: a folder of recordings with a `metadata.jsonl` is somebody's corpus. Hidden from readers.
MARK = ".qtr-export"
DATA = "data"
DATASET_FILE_BYTES = 500_000_000
_ROWS_PER_BATCH = 256
# Letters beyond ASCII are written in several ways, and some words name devices, on one system or another.
_PLAIN_NAME = re.compile(
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[a-z0-9][\w.\- ]{0,99}(?<![. ])", re.ASCII | re.IGNORECASE
)


def export_pack(
    pack: str | Path,
    out: str | Path,
    *,
    format: str = "flac",
    num_workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Write the clips and rows of a pack into the folder `out`; returns the number of clips.

    Args:
        format: "wav" or "flac": `<split>/<key>.<format>`, 16 bit, with one `metadata.jsonl`; `read_corpus(out)` reads
            it. "dataset": Parquet files with FLAC bytes inside under `datasets.Audio`; `load_dataset(out)` reads it.
        num_workers: threads that encode; None: one a core.
        overwrite: replace an export that is at `out`.
        quiet: no progress bar.

    Raises:
        PackError: `pack` is no pack, is damaged, or another process exports to `out`.
        FileExistsError: `out` exists.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}; it must be one of {', '.join(FORMATS)}")
    out = Path(out).absolute()
    opened = Pack.open(pack)
    check_free(out, "an export", MARK, overwrite=overwrite)
    write = _write_dataset if format == "dataset" else _write_files
    with staging_of(out) as staging:
        folder = staging / "export"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with (
            ThreadPoolExecutor(num_workers or os.cpu_count()) as threads,
            Progress(total=len(opened), unit=" clips", desc="exporting", shown=not quiet) as progress,
        ):
            write(opened, folder, format, threads, progress)
        (folder / MARK).write_text(f"exported from pack {opened.uuid}\n", encoding="utf-8")
        publish(folder, out)
    return len(opened)


def _batches(pack: Pack, split: str) -> Iterator[pa.Table]:
    """The rows of a split under the schema of the whole pack, some hundred at a time."""
    for path in pack.tables(split):
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                yield conformed(pa.Table.from_batches([batch]), pack.schema)


def _clip(pack: Pack, row: dict[str, Any]) -> Clip:
    return Clip(**row["audio"], sampling_rate=pack.sampling_rate)


def _write_files(pack: Pack, folder: Path, suffix: str, threads: ThreadPoolExecutor, progress: Progress) -> None:
    def write(name: str, row: dict[str, Any]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, _clip(pack, row).pcm, pack.sampling_rate, subtype="PCM_16")

    taken = SeenKeys()
    with atomic_file(folder / METADATA) as file:
        for split in pack.splits:
            number = 0
            for batch in _batches(pack, split):
                rows = batch.to_pylist()
                names = [_file_name(split, row["key"], number + i, suffix, taken) for i, row in enumerate(rows)]
                number += len(rows)
                for name, row, _ in zip(names, rows, threads.map(write, names, rows), strict=True):
                    del row["audio"], row["duration"]
                    line = {"file_name": name} | row | {"file_name": name, "split": split}
                    file.write(_json_line(line, row["key"]))
                progress.update(len(rows))


def _json_line(line: dict[str, Any], key: str) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"key {key!r}: {METADATA} cannot hold it ({error}); export with format='dataset'") from error


def _file_name(split: str, key: str, number: int, suffix: str, taken: SeenKeys) -> str:
    """`<split>/<key>.<suffix>`, or a numbered name where a key would not do as a path, or not as one of its own.

    On every system: some take `A.flac` and `a.flac` for the same file.
    """
    is_plain = len(key) < 200 and all(
        _PLAIN_NAME.fullmatch(part) and not part.lower().endswith((".wav", ".flac")) for part in key.split("/")
    )
    if is_plain and not taken.add(f"{split}/{key}".lower()):
        return f"{split}/{key}.{suffix}"
    return f"{split}/_/{number:08d}.{suffix}"


def _write_dataset(pack: Pack, folder: Path, _format: str, threads: ThreadPoolExecutor, progress: Progress) -> None:
    features = datasets.Features(
        {**datasets.Features.from_arrow_schema(pack.schema), "audio": datasets.Audio(pack.sampling_rate)}
    )

    def encoded(row: dict[str, Any]) -> dict[str, Any]:
        buffer = io.BytesIO()
        soundfile.write(buffer, _clip(pack, row).pcm, pack.sampling_rate, subtype="PCM_16", format="FLAC")
        return {"bytes": buffer.getvalue(), "path": f"{row['key']}.flac"}

    def with_audio(batch: pa.Table) -> pa.Table:
        audio = list(threads.map(encoded, batch.select(["key", "audio"]).to_pylist()))
        column = pa.array(audio, features.arrow_schema.field("audio").type)
        progress.update(len(batch))
        return batch.set_column(0, "audio", column).cast(features.arrow_schema)

    (folder / DATA).mkdir()
    for split in pack.splits:
        _write_tables(map(with_audio, _batches(pack, split)), folder / DATA, split, features.arrow_schema)
    files = "".join(f"  - split: {split}\n    path: {DATA}/{split}-*.parquet\n" for split in pack.splits)
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}tags:\n- audio\n---\n"
    (folder / "README.md").write_text(f"{card}# Speech with the terms said in it\n", encoding="utf-8")


def _write_tables(tables: Iterator[pa.Table], folder: Path, split: str, schema: pa.Schema) -> None:
    """Write `<split>-NNNNN.parquet`, a new one each time that one has grown large."""
    for number, first in enumerate(tables):
        path, num_bytes = folder / f"{split}-{number:05d}.parquet", 0
        # FLAC does not compress any further.
        with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                num_bytes += table.nbytes
                if num_bytes > DATASET_FILE_BYTES:
                    break
