"""How well a text model predicts unseen responses: loss, perplexity, bits a byte, and answers to read.

Bits a byte are the loss in bits over the bytes of the responses: unlike perplexity they compare models of different
tokenizers. Of a response that is cut, the bytes that its tokens spell are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, sum_over_ranks, world_size
from qwen_term_retrieval.pretraining.text.batches import Inputs
from qwen_term_retrieval.pretraining.text.losses import num_labels, summed_loss
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs, PairBatch
from qwen_term_retrieval.tokens.window_order import WindowOrder

_SEED = 0


def evaluated_pairs(pairs: MmapPairs, max_pairs: int) -> np.ndarray:
    """Indices of the pairs of an evaluation, the same each time, from all over: int64."""
    count = min(max_pairs or len(pairs), len(pairs))
    return WindowOrder(len(pairs), _SEED)[np.arange(count)]


@torch.no_grad()
def evaluate_pairs(
    model: PreTrainedModel,
    pairs: MmapPairs,
    indices: np.ndarray,
    inputs_of: Callable[[PairBatch], Inputs],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
) -> dict[str, float]:
    """`loss` (nats a token), `perplexity` and `bits_per_byte` of the responses; the same on any number of ranks."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in _own_batches(pairs, indices, batch_size):
        inputs = {name: values.to(model.device) for name, values in inputs_of(batch).items()}
        counts = (summed_loss(model, inputs), num_labels(inputs), _num_bytes(batch, tokenizer))
        sums += torch.tensor([float(count) for count in counts], dtype=torch.float64)
    loss, tokens, num_bytes = sum_over_ranks(sums.to(model.device)).tolist()
    return {
        "loss": loss / tokens,
        "perplexity": math.exp(min(loss / tokens, 700.0)),
        "bits_per_byte": loss / math.log(2) / num_bytes,
    }


def _own_batches(pairs: MmapPairs, indices: np.ndarray, batch_size: int) -> Iterator[PairBatch]:
    """This rank's share of the batches, pairs of like length together."""
    prompt_N, response_N = pairs.lengths(indices)
    for number, batch in enumerate(length_buckets(prompt_N + response_N, batch_size)):
        if number % world_size() == rank():
            yield pairs.batch(indices[batch])


def _num_bytes(batch: PairBatch, tokenizer: PreTrainedTokenizerBase) -> int:
    rows = zip(batch.response_BT, batch.response_lengths_B.tolist(), strict=True)
    texts = tokenizer.batch_decode([ids[:length].tolist() for ids, length in rows], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)


@torch.no_grad()
def generate_answers(
    model: Any,
    pairs: MmapPairs,
    indices: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> list[dict[str, str]]:
    """What the model answers, greedily: `prompt`, the true `response`, and what was `generated`, for each pair."""
    model.eval()
    answers = []
    for index in indices.tolist():
        batch = pairs.batch([index])
        prompt_1S = torch.from_numpy(batch.prompt_BS.astype(np.int64)).to(model.device)
        ids_1T = model.generate(
            input_ids=prompt_1S, attention_mask=torch.ones_like(prompt_1S), do_sample=False, num_beams=1,
            max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        generated = ids_1T[0] if model.config.is_encoder_decoder else ids_1T[0, prompt_1S.shape[1] :]
        texts = (batch.prompt_BS[0].tolist(), batch.response_BT[0].tolist(), generated.tolist())
        decoded = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in texts)
        answers.append(dict(zip(("prompt", "response", "generated"), decoded, strict=True)))
    return answers
