"""Vectors in a byte a dimension, turned so that a few dimensions say nearly all.

What most rows can score at most is known from a sixth of their bytes; the rest are multiplied in float32, and the
answer is that of scoring every row.

Vectors are rotated onto the principal axes of the bank. The head, the first axes, is kept as int8 beside one number
more: how much of the row is left outside of it. A window's score is then at most

    head · head  +  |rest of the window| |rest of the row|  +  what rounding to int8 may have taken,

by Cauchy and Schwarz, and the second term is one dimension more of the same int8 product. On the vectors of a phoneme
tower (384 dimensions) 63 axes hold 95 % of the squared length, and among 100,000 terms .1 to .7 % are left to look at
for the ten best. The tail, the other axes in int8, narrows these down before any float32 is read; where float32 is in
memory it is not needed. On vectors without such axes, noise, the head is all of them.

Shapes: N rows, D embedding, H head with the number more, R tail, Q windows, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

HEAD_SIZES = (64, 128)
_MOST_OUTSIDE = 0.08
_SAMPLE = 32_768
_BLOCK_ROWS = 16_384
_LEVELS = 127
# Sums of products in float32, of vectors of about unit length: far more than they have been seen to differ by.
ROUNDING = 2e-5
# int32 sums of a block of rows with all windows, a thread: their largest are found where they are, in a core's cache.
_SUMS_IN_CACHE = 192 << 10
_FILES = ("rotation", "head", "tail", "numbers")
# Without instructions for int8 a product in float32 is several times as fast, and as exact up to so many axes: every
# sum is a whole number below 2 ** 24.
_INT8_IS_FAST = torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()
_MOST_AXES_IN_FLOAT = (1 << 24) // _LEVELS**2


def _room_for_products(query_QH: torch.Tensor, num_rows: int) -> torch.Tensor:
    """(Q, N), int32 or float32, for `_products` to write into."""
    in_float = not _INT8_IS_FAST and query_QH.shape[1] <= _MOST_AXES_IN_FLOAT
    return torch.empty(len(query_QH), num_rows, dtype=torch.float32 if in_float else torch.int32)


def _products(query_QH: torch.Tensor, codes_NH: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Products of int8 numbers, whole numbers (Q, N), in `out`, which `_room_for_products` gave."""
    if out.dtype == torch.int32:
        return torch._int_mm(query_QH, codes_NH.T, out=out)
    return torch.mm(query_QH.float(), codes_NH.float().T, out=out)


@dataclass(frozen=True)
class _Part:
    """int8 numbers of some axes: `codes` times `step` is a row but for `error`, the most that any row's norm is off."""

    codes: torch.Tensor
    step: float
    error: float
    norm: float


@dataclass(frozen=True, eq=False)
class Sketch:
    """The int8 numbers of a bank.

    Args:
        rotation_DD: float32, orthogonal: a vector times it is the vector on the axes, the longest first.
        head: int8 (N, H), the last column of which is what is left of a row outside of the head, rounded up.
        tail: int8 (N, R); R is 0 where the bank has none.
    """

    rotation_DD: torch.Tensor
    head: _Part
    tail: _Part

    def __len__(self) -> int:
        return len(self.head.codes)

    @property
    def has_tail(self) -> bool:
        return self.tail.codes.shape[1] > 0

    @property
    def is_whole(self) -> bool:
        """Whether all axes are kept, in the head or the tail."""
        return self._axes + self.tail.codes.shape[1] == len(self.rotation_DD)

    @property
    def _axes(self) -> int:
        """Axes in the head."""
        return self.head.codes.shape[1] - 1

    @classmethod
    def of(cls, vectors_ND: torch.Tensor, *, with_tail: bool) -> Sketch:
        """A sketch of vectors on the CPU, which may be a memory map: they are read three times, block by block.

        `with_tail`: keep the other axes too, for a bank whose float32 is not in memory.
        """
        rotation_DD, axes = _principal_axes(vectors_ND)
        num_rows, dim = vectors_ND.shape
        rest = dim - axes if with_tail else 0
        most_head, most_tail = 0.0, 0.0
        for rows_ND in _rotated(vectors_ND, rotation_DD):
            outside = rows_ND[:, axes:].norm(dim=1).max().item() if axes < dim else 0.0
            most_head = max(most_head, rows_ND[:, :axes].abs().max().item(), outside)
            most_tail = max(most_tail, rows_ND[:, axes:].abs().max().item() if rest else 0.0)
        head = _Filling(torch.zeros(num_rows, axes + 1, dtype=torch.int8), most_head)
        tail = _Filling(torch.zeros(num_rows, rest, dtype=torch.int8), most_tail)
        first = 0
        for rows_ND in _rotated(vectors_ND, rotation_DD):
            rows = slice(first, first + len(rows_ND))
            outside_N1 = rows_ND[:, axes:].norm(dim=1, keepdim=True)
            head.fill(rows, rows_ND[:, :axes], outside_N1)
            if rest:
                tail.fill(rows, rows_ND[:, axes:])
            first += len(rows_ND)
        return cls(rotation_DD, head.part(), tail.part())

    def rotated(self, query_QD: torch.Tensor) -> torch.Tensor:
        return query_QD @ self.rotation_DD

    def most(self, turned_QD: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The most that each row can score with any window of each query, float32 (B, N).

        Args:
            turned_QD: windows of all queries, one query's after another's, as `rotated` gives them.
            sizes: windows of each query.
        """
        head_QH, per_unit, slack = self._windows_of_head(turned_QD)
        num_rows = len(self)
        most_BN = torch.empty(len(sizes), num_rows)
        num_windows = len(head_QH)
        step = max(64, min(_BLOCK_ROWS, _SUMS_IN_CACHE * torch.get_num_threads() // max(1, num_windows)) // 64 * 64)
        sums = _room_for_products(head_QH, step)
        firsts = np.cumsum([0, *sizes]).tolist()
        for first in range(0, num_rows, step):
            codes = self.head.codes[first : first + step]
            into = sums if len(codes) == step else _room_for_products(head_QH, len(codes))
            products_QR = _products(head_QH, codes, into)
            for query, (start, end) in enumerate(pairwise(firsts)):
                most_BN[query, first : first + len(codes)] = products_QR[start:end].amax(dim=0)
        return most_BN.mul_(per_unit).add_(slack)

    def most_of(self, turned_QD: torch.Tensor, rows_K: torch.Tensor) -> torch.Tensor:
        """A closer bound for some rows and the windows of one query, float32 (K,): head and tail both."""
        head_QH, head_unit, head_slack = self._windows_of_head(turned_QD, alone=False)
        tail_QR, tail_unit, tail_slack = _in_steps(turned_QD[:, self._axes :], self.tail)
        most_K = torch.empty(len(rows_K))
        step = max(64, _SUMS_IN_CACHE * torch.get_num_threads() // max(1, len(turned_QD)) // 64 * 64)
        for first in range(0, len(rows_K), step):
            rows = rows_K[first : first + step]
            parts = ((head_QH, self.head.codes[rows]), (tail_QR, self.tail.codes[rows]))
            of_head, of_tail = (_products(query, codes, _room_for_products(query, len(rows))) for query, codes in parts)
            scores_QK = of_head.float().mul_(head_unit).add_(of_tail, alpha=tail_unit)
            most_K[first : first + step] = scores_QK.amax(dim=0)
        return most_K.add_(head_slack + tail_slack)

    def _windows_of_head(self, turned_QD: torch.Tensor, *, alone: bool = True) -> tuple[torch.Tensor, float, float]:
        """Windows as int8 (Q, H), what a unit of their product is worth, and what is to be added to it.

        Not `alone`, the tail is scored too, and the number for the rest is 0.
        """
        axes = self._axes
        codes_QA, unit, slack = _in_steps(turned_QD[:, :axes], self.head, turned_QD[:, axes:])
        if alone:
            last_Q1 = (turned_QD[:, axes:].norm(dim=1, keepdim=True) / (unit / self.head.step)).ceil()
        else:
            last_Q1 = torch.zeros(len(turned_QD), 1)
        return torch.cat([codes_QA, last_Q1.clamp(max=_LEVELS).to(torch.int8)], dim=1), unit, slack

    def save(self, folder: Path) -> None:
        """Write `sketch_*.npy` into a folder that is there."""
        numbers = [(part.step, part.error, part.norm) for part in (self.head, self.tail)]
        arrays = (self.rotation_DD.numpy(), self.head.codes.numpy(), self.tail.codes.numpy(), np.array(numbers))
        for name, array in zip(_FILES, arrays, strict=True):
            if array.size:
                np.save(folder / f"sketch_{name}.npy", array)

    @classmethod
    def open(cls, folder: Path) -> Sketch:
        """Open what `save` wrote; the numbers stay on disk until a search reads them.

        Raises:
            OSError, ValueError: a file is missing or is none of ours.
        """
        rotation, numbers = (np.load(folder / f"sketch_{name}.npy") for name in ("rotation", "numbers"))
        head_codes = torch.from_numpy(np.load(folder / "sketch_head.npy", mmap_mode="c"))
        tail_codes = torch.zeros(len(head_codes), 0, dtype=torch.int8)
        if (folder / "sketch_tail.npy").is_file():
            tail_codes = torch.from_numpy(np.load(folder / "sketch_tail.npy", mmap_mode="c"))
        head, tail = numbers.tolist()
        return cls(torch.from_numpy(rotation), _Part(head_codes, *head), _Part(tail_codes, *tail))


def has_sketch(folder: Path) -> bool:
    return (folder / "sketch_numbers.npy").is_file()


class _Filling:
    """A part that is being filled."""

    def __init__(self, codes: torch.Tensor, most: float):
        self.codes = codes
        self.step = (most or 1.0) / _LEVELS
        self.error = self.norm = 0.0

    def fill(self, rows: slice, values_NA: torch.Tensor, outside_N1: torch.Tensor | None = None) -> None:
        codes_NA = (values_NA / self.step).round_()
        self.error = max(self.error, (values_NA - codes_NA * self.step).norm(dim=1).max().item())
        self.norm = max(self.norm, codes_NA.norm(dim=1).max().item() * self.step)
        if outside_N1 is not None:
            codes_NA = torch.cat([codes_NA, (outside_N1 / self.step).ceil_().clamp_(max=_LEVELS)], dim=1)
        self.codes[rows] = codes_NA.to(torch.int8)

    def part(self) -> _Part:
        return _Part(self.codes, self.step, self.error, self.norm)


def _in_steps(
    values_QA: torch.Tensor, part: _Part, outside_QR: torch.Tensor | None = None
) -> tuple[torch.Tensor, float, float]:
    """Windows as int8, what a unit of their product with a part is worth, and what rounding may have taken from it.

    `outside_QR` is what the last column of a head will stand for: it must fit into the same steps.
    """
    most = values_QA.abs().max().item() if values_QA.numel() else 0.0
    if outside_QR is not None and outside_QR.numel():
        most = max(most, outside_QR.norm(dim=1).max().item())
    step = (most or 1.0) / _LEVELS
    codes_QA = (values_QA / step).round_()
    off = (values_QA - codes_QA * step).norm(dim=1).max().item() if values_QA.numel() else 0.0
    longest = values_QA.norm(dim=1).max().item() if values_QA.numel() else 0.0
    slack = longest * part.error + off * part.norm + ROUNDING
    return codes_QA.to(torch.int8), step * part.step, slack


def _principal_axes(vectors_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The axes, the longest first, and how many of them make a head."""
    num_rows, dim = vectors_ND.shape
    sample_SD = vectors_ND[:: max(1, num_rows // _SAMPLE)].float()
    lengths_D, axes_DD = torch.linalg.eigh((sample_SD.T @ sample_SD).double())
    within_D = lengths_D.clamp(min=0).flip(0).cumsum(0)
    outside_D = 1 - within_D / within_D[-1].clamp(min=1e-30)
    # No tail of one axis: `torch._int_mm` over a single dimension gives what was in memory (2.13, CPU).
    axes = next((size - 1 for size in HEAD_SIZES if size < dim and outside_D[size - 2] <= _MOST_OUTSIDE), dim)
    return axes_DD.flip(1).float().contiguous(), axes


def _rotated(vectors_ND: torch.Tensor, rotation_DD: torch.Tensor) -> Iterator[torch.Tensor]:
    for first in range(0, len(vectors_ND), _BLOCK_ROWS):
        yield vectors_ND[first : first + _BLOCK_ROWS].float() @ rotation_DD
