"""Windows that start with a document and never reach into the next: which window lies where.

A document of L tokens has L - 1 next tokens to predict, so ceil((L - 1) / sequence_length) windows. How many windows
come before each document would be an array as long as the corpus; kept is the count before every 128th document, and
the rest is counted again from `documents.npy` at each look.
"""

from __future__ import annotations

import numpy as np

_DOCUMENTS_PER_BLOCK = 128
_DOCUMENTS_AT_ONCE = 1 << 20


class DocumentWindows:
    """Windows of `sequence_length` within documents.

    Args:
        starts: where each document starts, and where the last ends: (num_documents + 1,); may be memory-mapped.
    """

    def __init__(self, starts: np.ndarray, sequence_length: int):
        self._starts = starts
        self._sequence_length = sequence_length
        counts = [np.zeros(1, np.int64)]
        for first in range(0, len(starts) - 1, _DOCUMENTS_AT_ONCE):
            windows_N = self._num_windows(np.diff(starts[first : first + _DOCUMENTS_AT_ONCE + 1]))
            counts.append(np.add.reduceat(windows_N, np.arange(0, len(windows_N), _DOCUMENTS_PER_BLOCK)))
        self._windows_before_block = np.cumsum(np.concatenate(counts))

    def _num_windows(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(-(-(lengths - 1) // self._sequence_length), 0)

    def __len__(self) -> int:
        return int(self._windows_before_block[-1])

    def locate(self, windows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each window starts in the stream, and how many next tokens it predicts: two of (B,)."""
        block_B = np.searchsorted(self._windows_before_block, windows_B, side="right") - 1
        documents_BN = block_B[:, None] * _DOCUMENTS_PER_BLOCK + np.arange(_DOCUMENTS_PER_BLOCK + 1)
        starts_BN = self._starts[np.minimum(documents_BN, len(self._starts) - 1)]
        lengths_BN = np.diff(starts_BN)
        ends_BN = self._windows_before_block[block_B, None] + np.cumsum(self._num_windows(lengths_BN), axis=1)
        row_B = np.arange(len(windows_B))
        document_B = (ends_BN <= windows_B[:, None]).sum(axis=1)
        length_B = lengths_BN[row_B, document_B]
        number_B = windows_B - ends_BN[row_B, document_B] + self._num_windows(length_B)
        skipped_B = number_B * self._sequence_length
        num_next_B = np.minimum(length_B - 1 - skipped_B, self._sequence_length)
        return starts_BN[row_B, document_B] + skipped_B, num_next_B
