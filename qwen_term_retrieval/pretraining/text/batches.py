"""Pairs to what a model reads: side by side for an encoder-decoder, packed into rows for a decoder.

Labels stand where their token is predicted, and are -100 where nothing is to be learned. No model is given `labels`:
the mean that it would take of a micro-batch is not the loss of a step (see `losses.py`).

Shapes: B pairs, S tokens of a prompt, T tokens of a response, R rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from qwen_term_retrieval.pretraining.text.order import MicroBatch, PairOrder
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs, PairBatch

IGNORED_LABEL = -100
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SideBySide:
    """Prompts to the encoder, responses to the decoder: `input_ids`, `attention_mask` (B, S); the others (B, T)."""

    pad_id: int
    start_id: int

    def __call__(self, batch: PairBatch) -> Inputs:
        prompt_BS, response_BT = (
            torch.from_numpy(ids.astype(np.int64)) for ids in (batch.prompt_BS, batch.response_BT)
        )
        beyond_BT = torch.arange(response_BT.shape[1]) >= torch.from_numpy(batch.response_lengths_B)[:, None]
        started_BT = response_BT.roll(1, dims=1)
        started_BT[:, 0] = self.start_id
        return {
            "input_ids": prompt_BS,
            "attention_mask": (
                torch.arange(prompt_BS.shape[1]) < torch.from_numpy(batch.prompt_lengths_B)[:, None]
            ).long(),
            "decoder_input_ids": started_BT,
            "labels": response_BT.masked_fill(beyond_BT, IGNORED_LABEL),
        }


@dataclass(frozen=True)
class Packed:
    """Prompt and response behind one another as a document, documents laid into rows: all (R, L).

    No document is cut or spread over two rows. `position_ids` begin anew with each, and `document_ids` tell them apart
    (padding is -1), so that each is read as if it were alone.

    Args:
        row_length: tokens of a row at most.
        loss_on: "response", or "all": prompts are learned too.
    """

    pad_id: int
    row_length: int
    loss_on: Literal["response", "all"] = "response"

    def __call__(self, batch: PairBatch) -> Inputs:
        length_B = batch.prompt_lengths_B + batch.response_lengths_B
        rows = rows_of_documents(length_B, self.row_length)
        shape = (len(rows), max(int(length_B[row].sum()) for row in rows))
        ids_RL = np.full(shape, self.pad_id, np.int64)
        labels_RL = np.full(shape, IGNORED_LABEL, np.int64)
        position_RL, document_RL = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for number, row in enumerate(rows):
            place = 0
            for pair in row:
                num_prompt, num_response = int(batch.prompt_lengths_B[pair]), int(batch.response_lengths_B[pair])
                ids = np.concatenate([batch.prompt_BS[pair, :num_prompt], batch.response_BT[pair, :num_response]])
                end = place + len(ids)
                ids_RL[number, place:end] = ids
                position_RL[number, place:end] = np.arange(len(ids))
                document_RL[number, place:end] = pair
                learned = 1 if self.loss_on == "all" else num_prompt
                labels_RL[number, place + learned - 1 : end - 1] = ids[learned:]
                place = end
        arrays = {
            "input_ids": ids_RL, "position_ids": position_RL, "document_ids": document_RL, "labels": labels_RL
        }  # fmt: skip
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


def rows_of_documents(length_B: np.ndarray, row_length: int) -> list[list[int]]:
    """Documents in about as few rows as their tokens fit, filled evenly: the longest first, into the emptiest row."""
    num_rows = max(1, -(-int(length_B.sum()) // row_length))
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled = [0] * num_rows
    for document in np.argsort(-length_B, kind="stable").tolist():
        row = min(range(len(rows)), key=filled.__getitem__)
        if filled[row] + length_B[document] > row_length and filled[row]:
            rows.append([])
            filled.append(0)
            row = len(rows) - 1
        rows[row].append(document)
        filled[row] += int(length_B[document])
    return [row for row in rows if row]


class PairBatches(Dataset):
    """The share of one rank in each global micro-batch, by its place, ready for the model."""

    def __init__(
        self,
        pairs: MmapPairs,
        order: PairOrder,
        inputs_of: Callable[[PairBatch], Inputs],
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        if order.global_batch_size % num_ranks:
            raise ValueError(f"{num_ranks} processes cannot share batches of {order.global_batch_size} pairs equally")
        self.pairs = pairs
        self.order = order
        self.inputs_of = inputs_of
        self._share = slice(
            rank * order.global_batch_size // num_ranks, (rank + 1) * order.global_batch_size // num_ranks
        )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, place: MicroBatch) -> Inputs:
        return self.inputs_of(self.pairs.batch(self.order.batch(place)[self._share]))
