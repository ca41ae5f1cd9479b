"""Rows of Parquet, a thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from qwen_term_retrieval.corpora.locations import Location, opened
from qwen_term_retrieval.errors import CorpusError

ROWS_PER_BATCH = 1024


def parquet_rows(file: Location) -> Iterator[tuple[str, Any]]:
    """Yield `(where, row)`.

    Raises:
        CorpusError: where the file is no Parquet, or broken.
    """
    # Broken pages show as any of these three: pyarrow raises OSError for pages that do not decompress, ValueError for
    # text that is not UTF-8. A file that is not there is another matter.
    try:
        with opened(file) as stream, parquet.ParquetFile(stream) as table:
            rows = chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(ROWS_PER_BATCH))
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(f"{file}: not readable as Parquet: {error}") from error
