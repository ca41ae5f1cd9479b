"""How the vectors of a part are held: what makes a large one quick to search, by its size or as somebody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from qwen_term_retrieval.retrieval.indexes.graph import Graph
from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.sketch import Sketch
from qwen_term_retrieval.retrieval.indexes.vectors_file import VectorsFile

Hold = Literal["auto", "float32", "int8", "ann"]
SKETCH_FROM_ROWS = 4_096
_FLOAT32_UP_TO_BYTES = 256 << 20


def made_quick(part: Part, hold: Hold) -> Part:
    """A part on the CPU with what makes it quick, where it is large."""
    if part.terms.num_rows < SKETCH_FROM_ROWS or part.sketch is not None or part.graph is not None:
        return part
    if hold == "auto":
        hold = "float32" if part.vectors_RD.nbytes <= _FLOAT32_UP_TO_BYTES else "int8"
    if hold == "float32":
        return replace(part, file=None, sketch=Sketch.of(part.vectors_RD, with_tail=False))
    file = part.file or VectorsFile.written(part.vectors_RD)
    part = replace(part, vectors_RD=file.mapped, file=file)
    if hold == "ann":
        return replace(part, graph=Graph.of(part.vectors_RD))
    return replace(part, sketch=Sketch.of(part.vectors_RD, with_tail=True))


def held(parts: Sequence[Part]) -> str:
    """How these are held, in words."""
    if any(part.graph is not None for part in parts):
        return "approximately: a graph of int8, rescored in float32"
    return "int8, rescored in float32: exact" if any(part.file is not None for part in parts) else "float32"
