"""What one training step of one rank needs in memory, told before the first.

Nothing is guessed from the names of layers: each part of the model (audio tower, heads, text tower) runs forward and
backward on a few inputs as long as the run's longest, in its own precision, with its own attention and checkpointing,
and `LiveMemory` counts what it keeps for the backward pass and what it needs beside that. Two sizes give a line, and
the line gives any batch: all of it grows with its clips or its texts. What is not measured is counted: gradients
and optimizer states from the trained parameters, the loss from its blocks (`losses/score_blocks.py`).

With GradCache the towers count for one chunk, embeddings and loss for the whole batch.

Shapes: B clips, P pooled spans, N texts, Q queries, W windows, D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS
from qwen_term_retrieval.training.checks.live_memory import LiveMemory
from qwen_term_retrieval.training.gradcache import RandomState

GB = 1e9
_FLOAT = 4
# Copies of a block of scores that a loss holds at its fullest, and of the vectors that the block was made from.
_SCORE_COPIES, _VECTOR_COPIES = 2, 3
# States of an optimizer in numbers a trained parameter; every other one keeps two, as Adam does.
_OPTIMIZER_STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "lion": 1}


class Line(NamedTuple):
    """Bytes that grow with a count."""

    fixed: float
    each: float

    def at(self, count: float) -> float:
        return max(0.0, self.fixed + self.each * count) if count else 0.0


@dataclass
class PartMemory:
    """What a part of the model keeps for its backward pass, outputs included, and needs beside it at its fullest."""

    kept: Line
    beside: Line


@dataclass
class BatchShape:
    """How much one clip brings into a batch.

    Attributes:
        input_bytes: of its audio or its cached frames.
        spans, queries, texts: pooled spans, queries of all losses, and distinct texts, a clip.
        candidates: rows that the losses pick from the texts, a clip; a text may be picked as a text and as a term.
        gathered: those of them that every rank sends to all.
        windows: of the query that has the most.
    """

    input_bytes: float
    spans: float
    queries: float
    texts: float
    candidates: float
    gathered: float
    windows: int


@dataclass
class MemoryEstimate:
    """Peak bytes of one rank in one step, part by part; `parameters` are there already when it is made."""

    parameters: float
    gradients: float
    optimizer: float
    inputs: float
    audio_tower: float
    text_tower: float
    heads: float
    loss: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def to_come(self) -> float:
        """What the device must still have room for."""
        return self.total - self.parameters

    def table(self) -> str:
        names = [part.name for part in fields(self)]
        rows = [(_LABELS.get(name, name), getattr(self, name)) for name in names] + [("sum", self.total)]
        return "\n".join(f"  {label:<32}{size / GB:>8.2f} GB" for label, size in rows)


_LABELS = {
    "inputs": "batches of audio",
    "audio_tower": "activations of the audio tower",
    "text_tower": "activations of the text tower",
    "heads": "activations of pooling and heads",
    "loss": "loss and working space",
}


@dataclass
class StepMemory:
    """The measured parts of a step, from which the memory of any batch follows.

    Attributes:
        model: whose parameters count.
        shape: of a clip of the run.
        audio_tower, heads, text_tower: bytes by clips, clips, and texts; the audio tower is None where its frames come
            from a cache.
        optimizer: a name of `TrainingArguments.optim`.
        num_ranks: that share a batch.
        batches_ready: batches that lie in the memory in question at a time.
    """

    model: nn.Module
    shape: BatchShape
    audio_tower: PartMemory | None
    heads: PartMemory
    text_tower: PartMemory
    embedding_dim: int
    optimizer: str = "adamw_torch"
    num_ranks: int = 1
    batches_ready: int = 1

    def estimate(self, num_clips: int, chunk_size: int | None = None) -> MemoryEstimate:
        """Of a step over `num_clips` clips of a rank, by GradCache in chunks of `chunk_size` where it is given."""
        clips = min(num_clips, chunk_size or num_clips)
        texts = self.shape.texts * clips
        counts = [(self.audio_tower, clips), (self.heads, clips), (self.text_tower, texts)]
        audio, heads, text = (part.kept.at(count) if part else 0.0 for part, count in counts)
        beside = max(part.beside.at(count) for part, count in counts if part)
        embeddings, loss = self._embeddings(num_clips), self._loss(num_clips)
        in_chunks = clips < num_clips
        # In chunks, all embeddings and their gradients wait while one chunk is run again, and the loss is over by then.
        rest = max(loss - audio - heads - text, beside) + 2 * embeddings if in_chunks else max(loss, beside)
        trained = sum(_nbytes(values) for values in self.model.parameters() if values.requires_grad)
        return MemoryEstimate(
            parameters=sum(map(_nbytes, [*self.model.parameters(), *self.model.buffers()])),
            # DDP holds them once more, in the buckets that it sends.
            gradients=trained * (2 if self.num_ranks > 1 else 1),
            optimizer=trained * self._optimizer_states,
            inputs=self.shape.input_bytes * num_clips * self.batches_ready,
            audio_tower=audio,
            text_tower=text,
            heads=heads,
            loss=rest,
        )

    @property
    def _optimizer_states(self) -> int:
        known = (states for name, states in _OPTIMIZER_STATES.items() if self.optimizer.startswith(name))
        return next(known, 2)

    def _embeddings(self, num_clips: int) -> float:
        return (self.shape.spans + self.shape.texts) * num_clips * self.embedding_dim * _FLOAT

    def _loss(self, num_clips: int) -> float:
        """Gradients of the embeddings, candidates of all ranks, and the blocks of scores of the widest queries."""
        row = self.embedding_dim * _FLOAT
        candidates = self.shape.candidates * num_clips
        gathered = self.shape.gathered * num_clips * self.num_ranks
        copies = 2 * candidates * row + (4 * gathered * row if self.num_ranks > 1 else 0)
        widest = self.shape.queries * num_clips * self.shape.windows
        scores = min(max(BLOCK_ELEMENTS, self.shape.windows * gathered), widest * gathered)
        vectors = min(scores / max(1.0, gathered), widest) * row
        return self._embeddings(num_clips) + copies + _SCORE_COPIES * scores * _FLOAT + _VECTOR_COPIES * vectors


def _nbytes(values: torch.Tensor) -> int:
    return values.numel() * values.element_size()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in training mode and leave it, its gradients and all random states as they were.

    Gradients are there from the start and are counted by themselves: no part's memory holds them.
    """
    was_training = model.training
    state = RandomState.take(next(model.parameters()).device)
    trained = [values for values in model.parameters() if values.requires_grad]
    before = [values.grad for values in trained]
    model.train()
    try:
        for values in trained:
            values.grad = torch.zeros_like(values)
        yield
    finally:
        for values, gradient in zip(trained, before, strict=True):
            values.grad = gradient
        model.train(was_training)
        state.put()


def measure_part(
    inputs: Callable[[int], dict[str, Any]],
    forward: Callable[..., torch.Tensor],
    sizes: tuple[int, int],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> PartMemory:
    """Run a part of a model on two sizes of input, forward and backward, and draw the line through what it takes.

    Args:
        inputs: a size -> arguments of `forward`; they are not counted.
        forward: gives one tensor; a part without anything to train is not run backward.
        sizes: the smaller first.
        autocast: the context of the forward pass.
    """
    found = []
    for size in sizes:
        arguments = inputs(size)
        with LiveMemory() as live:
            with autocast():
                output = forward(**arguments)
            kept = live.now
            if output.requires_grad:
                output.backward(torch.ones_like(output))
        found.append((kept, live.peak - kept))
        del output
    (kept, beside), (more_kept, more_beside) = found
    return PartMemory(_line(sizes, kept, more_kept), _line(sizes, beside, more_beside))


def _line(sizes: tuple[int, int], low: float, high: float) -> Line:
    each = max(0.0, (high - low) / (sizes[1] - sizes[0]))
    return Line(high - each * sizes[1], each)
