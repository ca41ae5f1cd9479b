"""Rows of JSON: a list of objects, or one object a line, whatever the file's suffix says; `.gz` too.

The rows of term-level corpora, of NeMo manifests and of Lhotse cuts all come through here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qwen_term_retrieval.corpora.locations import Location, text_lines
from qwen_term_retrieval.errors import CorpusError


def json_rows(file: Location) -> Iterator[tuple[str, Any]]:
    """Yield `(where, row)`; JSON Lines are read a line at a time, a list as a whole.

    Raises:
        CorpusError: naming the line that is not JSON.
    """
    lines = text_lines(file)
    is_first = True
    for number, line in lines:
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            # A file of arrays, one a line, is JSON Lines of the wrong kind, and fails here as "Extra data".
            rows = parsed_json(line + "".join(line for _, line in lines), str(file))
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))
            return
        is_first = False
        where = f"{file}, line {number}"
        yield where, parsed_json(line, where)


def parsed_json(text: str, where: str) -> Any:
    """One JSON value.

    Raises:
        CorpusError: with the place of what is wrong.
    """
    try:
        row = json.loads(text)
        # JSON can escape half of a surrogate pair, which no UTF-8 file can hold.
        if "\\ud" in text or "\\uD" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}, column {error.colno}" if error.lineno > 1 else f" at column {error.colno}"
        hint = " An object over several lines? Write one a line, or a list." if text.strip() == "{" else ""
        raise CorpusError(f"{where}: not JSON: {error.msg}{place}.{hint}") from error
    except RecursionError as error:
        raise CorpusError(f"{where}: nested too deeply; give a row of plain cells") from error
    except ValueError as error:
        raise CorpusError(f"{where}: {error}; mend the row") from error
    return row
