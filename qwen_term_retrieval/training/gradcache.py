"""GradCache: a contrastive batch as large as wanted, with the memory of a few clips (Gao et al. 2021).

A contrastive loss needs the embeddings of the whole batch, but not their graphs. So the batch is embedded without a
graph, a chunk of clips at a time; the loss and its gradient with respect to the embeddings are taken once, over all of
them and all ranks; then each chunk is embedded again, with a graph, and the cached gradient is sent back through it.
The gradients are those of the plain step, not an approximation. It costs a second forward pass of the towers.

Two things make the second pass the same as the first: the random state of each chunk is kept and replayed, so dropout
drops the same units, and every chunk goes through all towers in one forward call, as the distributed wrapper demands.
Ranks exchange gradients in the backward pass of the last chunk alone.

Shapes: B clips, P pooled spans, N texts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwen_term_retrieval.losses.objective import Embeddings
from qwen_term_retrieval.runs.checkpoints.random_state import RandomState


def gradcache_step(
    model: nn.Module,
    model_inputs: dict[str, Any],
    loss_of: Callable[[Embeddings], torch.Tensor],
    chunk_size: int,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> torch.Tensor:
    """Loss of a batch, and its gradients added to the parameters' `.grad`, with the graph of one chunk at a time.

    Args:
        model: forward of `model_inputs` gives `audio_PD`, `text_ND`, `logit_scale` and `logit_bias`, and
            `phoneme_nll_B` where the inputs say what is said.
        model_inputs: of the whole batch; see `split_inputs`.
        loss_of: embeddings of the batch -> this rank's share of the loss, a scalar.
        chunk_size: clips a chunk; the batch's texts are shared out evenly over the chunks.
        backward: called with a scalar for each chunk: the place for a gradient scaler or accelerator.
        no_sync: context in which a backward pass does not exchange gradients between ranks.

    Returns:
        The loss, detached.
    """
    chunks = split_inputs(model_inputs, chunk_size)
    embeddings, states = _embed_without_graph(model, chunks)
    with torch.enable_grad():
        loss = loss_of(embeddings)
    gradients = _gradients(loss, embeddings)
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        last = number == len(chunks) - 1
        with contextlib.nullcontext() if last else no_sync():
            with state.replayed():
                again = embeddings_of(model(**chunk.inputs))
            backward(_inner_product(again, gradients, chunk, first=number == 0))
    return loss.detach()


@dataclass
class InputChunk:
    """Inputs of one forward pass, and where its outputs belong in the batch.

    Attributes:
        clips: which of the batch.
        spans: row of each pooled span in the batch.
        texts: row of each text in the batch.
        repeated_text: the one text is there only so that the text tower takes part; its embedding is not used.
    """

    inputs: dict[str, Any]
    clips: slice
    spans: torch.Tensor
    texts: torch.Tensor
    repeated_text: bool


def split_inputs(model_inputs: dict[str, Any], chunk_size: int) -> list[InputChunk]:
    """Cut the model's inputs by clips.

    The names of the inputs say how: `…_B` and `…_B<more>` have a row for each clip, `…_P` one for each pooled span
    (`clip_index_P` says of which clip), and everything in `text_inputs` one for each text. A rank with fewer texts than
    chunks gives some chunks its first text again, for no tower may be left out.

    Raises:
        ValueError: an input whose name ends in none of these, a batch without a text, or chunks of less than one clip.
    """
    if chunk_size < 1:
        raise ValueError(f"a chunk must hold at least 1 clip, not {chunk_size}")
    clip_index_P = model_inputs["clip_index_P"]
    tensors = {name: values for name, values in model_inputs.items() if name != "text_inputs"}
    axis = {name: name.rpartition("_")[2][:1] for name in tensors}
    for name, letter in axis.items():
        if letter not in ("B", "P"):
            raise ValueError(f"GradCache cannot cut the input {name!r}: its name ends in neither _B… nor _P")
    num_clips = next(len(tensors[name]) for name, letter in axis.items() if letter == "B")
    num_texts = len(next(iter(model_inputs["text_inputs"].values())))
    if not num_texts:
        raise ValueError("the batch holds no text: no clip of it has a known text or a term")
    edges = [*range(0, num_clips, chunk_size), num_clips]
    texts_of = torch.arange(num_texts, device=clip_index_P.device).tensor_split(len(edges) - 1)
    chunks = []
    for (first, end), texts in zip(itertools.pairwise(edges), texts_of, strict=True):
        spans = ((clip_index_P >= first) & (clip_index_P < end)).nonzero()[:, 0]
        inputs = {name: tensors[name][first:end] if axis[name] == "B" else tensors[name][spans] for name in tensors}
        inputs["clip_index_P"] = inputs["clip_index_P"] - first
        rows = texts if len(texts) else texts.new_zeros(1)
        inputs["text_inputs"] = {name: values[rows] for name, values in model_inputs["text_inputs"].items()}
        chunks.append(InputChunk(inputs, slice(first, end), spans, rows, repeated_text=not len(texts)))
    return chunks


def embeddings_of(outputs: Any) -> Embeddings:
    """What the losses take of a forward pass."""
    optional = (outputs.get(name) for name in ("logit_bias", "phoneme_nll_B"))
    return Embeddings(outputs["audio_PD"], outputs["text_ND"], outputs["logit_scale"], *optional)


def _embed_without_graph(model: nn.Module, chunks: list[InputChunk]) -> tuple[Embeddings, list[RandomState]]:
    """The batch's embeddings as leaves of a new graph, and the random state before each chunk."""
    states, pieces = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandomState.take(next(model.parameters()).device))
            pieces.append(embeddings_of(model(**chunk.inputs)))
        order_P = torch.cat([chunk.spans for chunk in chunks]).argsort()
        audio_PD = torch.cat([piece.audio_PD for piece in pieces])[order_P]
        texts = [piece.text_ND for piece, chunk in zip(pieces, chunks, strict=True) if not chunk.repeated_text]

    def leaf(values: torch.Tensor) -> torch.Tensor:
        return values.detach().requires_grad_()

    bias, nll = pieces[0].logit_bias, [piece.phoneme_nll_B for piece in pieces if piece.phoneme_nll_B is not None]
    optional = None if bias is None else leaf(bias), leaf(torch.cat(nll)) if nll else None
    return Embeddings(leaf(audio_PD), leaf(torch.cat(texts)), leaf(pieces[0].logit_scale), *optional), states


def _gradients(loss: torch.Tensor, embeddings: Embeddings) -> Embeddings:
    """The loss's gradient with respect to each of the embeddings, zeros where it does not depend on them."""
    leaves = {name: values for name, values in embeddings._asdict().items() if values is not None}
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return embeddings._replace(**dict(zip(leaves, gradients, strict=True)))


def _inner_product(again: Embeddings, gradients: Embeddings, chunk: InputChunk, first: bool) -> torch.Tensor:
    """A scalar whose gradient with respect to the chunk's embeddings is the cached one.

    The scalars of the logits are the same in every chunk and count once. In the others they take part with a weight
    of zero, so that no parameter is unused.
    """
    texts = gradients.text_ND[chunk.texts] * (not chunk.repeated_text)
    product = (again.audio_PD * gradients.audio_PD[chunk.spans]).sum() + (again.text_ND * texts).sum()
    product = product + again.logit_scale * gradients.logit_scale * first
    if again.logit_bias is not None and gradients.logit_bias is not None:
        product = product + again.logit_bias * gradients.logit_bias * first
    if again.phoneme_nll_B is not None and gradients.phoneme_nll_B is not None:
        product = product + (again.phoneme_nll_B * gradients.phoneme_nll_B[chunk.clips]).sum()
    return product
