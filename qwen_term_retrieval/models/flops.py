"""Floating-point operations: those of a training step, counted, and those a device can do.

The towers are run under `torch.utils.flop_counter.FlopCounterMode`, one clip or text alone, forward and backward. A
multiplication and its addition are two operations; matrix products, convolutions and attention count, nothing else
does. What a clip costs is a polynomial in its frames (attention is the square), so a few lengths give every other.

Counted is what the gradients need, once: for the weights that are trained, a frozen matrix without the gradient of its
weight, frames or texts from a cache without their tower. Padding, the second forward pass of GradCache and what
checkpointing computes again are time, not use: the ratio to `peak_flops` is the model FLOPs utilisation of Chowdhery
et al. 2022 (PaLM, appendix B), not the hardware's. Left out are the scores of the loss and the optimizer.

Shapes: B clips, T frames, P spans, N texts, L tokens, H hidden.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import PreTrainedModel

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.evaluation_mode import evaluation_mode
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel

# Dense, in 1e12 a second: bf16, fp16 (both accumulate in fp32), TF32, fp32 without tensor cores; None: not in hardware.
# NVIDIA's figures, those "with sparsity" halved. H100, A100, T4 and V100 agree with the table of Lightning Fabric
# (`utilities/throughput.py`), which cites the data sheets; the others were not checked. The longer of two names that
# fit comes first.
_PEAK_TFLOPS: dict[str, tuple[float | None, float, float | None, float]] = {
    "H200 NVL": (835.5, 835.5, 417.5, 60.0),
    "H200": (989.5, 989.5, 494.5, 67.0),
    "H100 PCIe": (756.5, 756.5, 378.0, 51.0),
    "H100 NVL": (835.5, 835.5, 417.5, 60.0),
    "H100": (989.5, 989.5, 494.5, 67.0),
    "A100": (312.0, 312.0, 156.0, 19.5),
    "L40S": (362.0, 362.0, 183.0, 91.6),
    "L4": (121.0, 121.0, 60.0, 30.3),
    "A10G": (70.0, 70.0, 35.0, 31.5),
    "A10": (125.0, 125.0, 62.5, 31.2),
    "RTX 4090": (165.2, 165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 71.0, 35.6, 35.6),
    "T4": (None, 65.0, None, 8.1),
    "V100 PCIE": (None, 112.0, None, 14.0),
    "V100": (None, 125.0, None, 15.7),
}
# A slice of a GPU, and two that share only their name with it.
_OTHER_THAN_LISTED = (" MIG ", " Laptop ", " D ")


def count_flops(run: Callable[[], torch.Tensor], weights: Sequence[torch.Tensor] = ()) -> int:
    """Operations of `run`, and of the gradients of what it gives with respect to `weights`, where it has any.

    Nothing is multiplied: products come out as zeros of their shape, so that a tower of billions of weights takes no
    longer than a small one. No `.grad` is touched.
    """
    with _ShapesOnly(), FlopCounterMode(display=False) as counter:
        output = run()
        if weights and output.requires_grad:
            torch.autograd.grad(output.sum(), weights, allow_unused=True)
    return counter.get_total_flops()


class StepFlops:
    """Useful operations of training steps, forward and backward, from the lengths in a batch.

    Exact where every frame of a clip attends to every other, as in Whisper's encoders; within a few per cent for
    encoders that attend in windows of several seconds (Qwen3's), from lengths above one window on.

    Example:
        >>> flops = StepFlops(model)                       # doctest: +SKIP
        >>> flops(batch["model_inputs"]) / seconds / peak_flops(model.device, torch.bfloat16)  # doctest: +SKIP
    """

    def __init__(self, model: TermRetrievalModel):
        self.model = model
        self._costs: dict[tuple[str, ...], np.ndarray] = {}

    def __call__(self, model_inputs: dict[str, Any]) -> int:
        """Operations for the inputs of one `forward`, as the collator gives them, on any device."""
        text_inputs = model_inputs.get("text_inputs") or {}
        if "frames_BTH" in model_inputs:
            lengths_B, count = model_inputs["num_frames_B"], self._count_features
        else:
            lengths_B, count = self.model.audio_tower.num_frames(model_inputs["num_samples_B"]), self._count_pcm
        lengths = [lengths_B, *(_num_tokens(text_inputs[name]) for name in _masks(text_inputs))]
        # All at once: each number asked of a device waits for it.
        sums = torch.stack([power for values in lengths for power in (values.sum(), values.square().sum())]).tolist()
        audio = [len(lengths_B), *sums[:2], len(model_inputs["clip_index_P"])]
        total = self._cost(("audio", count.__name__), lambda: count(model_inputs)) @ audio
        if text_inputs:
            num_texts = len(next(iter(text_inputs.values())))
            total += self._cost(tuple(text_inputs), lambda: self._count_texts(text_inputs)) @ [num_texts, *sums[2:]]
        return round(float(total))

    def _cost(self, kind: tuple[str, ...], count: Callable[[], np.ndarray]) -> np.ndarray:
        if kind not in self._costs:
            with _plain(self.model):
                self._costs[kind] = count()
        return self._costs[kind]

    def _count_pcm(self, model_inputs: dict[str, Any]) -> np.ndarray:
        """Operations a clip, a frame, a frame squared and a span, tower and head."""
        lengths = _probe_lengths(self.model)
        frames, heard = _computed_frames(self.model, lengths), "phonemes_BP" in model_inputs
        return self._fit_audio(frames, lambda place: _frames(self.model, lengths[place]), heard)

    def _count_features(self, model_inputs: dict[str, Any]) -> np.ndarray:
        """The same where the frames come from a cache."""
        cached, device = model_inputs["frames_BTH"], self.model.device
        frames = [8, 16, 24]

        def take(place: int) -> tuple[torch.Tensor, torch.Tensor]:
            shape = (1, *cached.shape[1:-2], frames[place], cached.shape[-1])
            return cached.new_zeros(shape, device=device), torch.tensor([frames[place]], device=device)

        return self._fit_audio(frames, take, "phonemes_BP" in model_inputs)

    def _fit_audio(
        self, frames: Sequence[int], take: Callable[[int], tuple[torch.Tensor, torch.Tensor]], heard: bool
    ) -> np.ndarray:
        """Fit the four numbers to three lengths with one span each, and the first with two.

        heard: the phoneme head takes part.
        """
        model, weights = self.model, _trained(self.model)

        def embed(place: int, num_spans: int) -> torch.Tensor:
            cached, num_frames_B = take(place)
            clip_index_P = torch.zeros(num_spans, dtype=torch.long, device=cached.device)
            spans_PD = model.pool_spans(
                cached, num_frames_B, clip_index_P, clip_index_P, num_frames_B.expand(num_spans)
            )
            if not heard or model.phoneme_head is None:
                return spans_PD
            return spans_PD.sum() + model.phoneme_head(cached, num_frames_B)[0].sum()

        probes = [(0, 1), (1, 1), (2, 1), (0, 2)]
        counts = [count_flops(functools.partial(embed, *probe), weights) for probe in probes]
        rows = [[1, frames[place], frames[place] ** 2, num_spans] for place, num_spans in probes]
        return _solve(rows, counts)

    def _count_texts(self, text_inputs: dict[str, torch.Tensor]) -> np.ndarray:
        """Operations a text, head and all; and for each tower that reads tokens, a token and a token squared."""
        model, weights = self.model, _trained(self.model)
        masks = _masks(text_inputs)
        # Three lengths of each tower's tokens, the other towers' at the first.
        probes = [[4] * len(masks)]
        probes += [
            [*[4] * part, length, *[4] * (len(masks) - part - 1)] for part in range(len(masks)) for length in (8, 12)
        ]
        counts = []
        for probe in probes:
            inputs = _one_text(text_inputs, dict(zip(masks, probe, strict=True)), model.device)
            counts.append(count_flops(functools.partial(model.embed_texts, **inputs), weights))
        rows = [[1, *(power for length in probe for power in (length, length**2))] for probe in probes]
        return _solve(rows, counts)


def peak_flops(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations a second that the device can do at most, dense.

    Of known GPUs the vendor's figure (for float32 that of TF32, where PyTorch was told to use it); of CPUs and other
    devices the best that a matrix product of this process reaches, measured once, in less than a second.
    """
    device = torch.device(device)
    if device.type == "cuda":
        peak = listed_peak(torch.cuda.get_device_name(device), dtype, tf32=_uses_tf32())
        if peak is not None:
            return peak
    # A rank's CPU is called "cpu:0", and would be measured as a GPU is, with products that take it a minute.
    return _measured_peak("cpu" if device.type == "cpu" else str(device), dtype)


def listed_peak(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """The vendor's figure for a GPU by its name, such as "NVIDIA H100 80GB HBM3"; None where there is none."""
    column = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2 if tf32 else 3}.get(dtype)
    words = f" {device_name.replace('-', ' ')} "
    found = next((peaks for name, peaks in _PEAK_TFLOPS.items() if f" {name} " in words), None)
    if found is None or column is None or any(word in words for word in _OTHER_THAN_LISTED):
        return None
    tera = found[column]
    return None if tera is None else tera * 1e12


@functools.cache
def _measured_peak(device: str, dtype: torch.dtype) -> float:
    size = 1024 if device == "cpu" else 4096
    left, right = torch.ones(2, size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(8):
        _synchronize(device)
        started = time.perf_counter()
        left @ right
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _synchronize(device: str) -> None:
    if not device.startswith("cpu"):
        torch.accelerator.synchronize(device)


def _uses_tf32() -> bool:
    # Asking by the older names after the newer ones were set is an error (torch 2.9).
    places = (torch.backends, torch.backends.cuda.matmul)
    return any(getattr(place, "fp32_precision", None) == "tf32" for place in places)


class _ShapesOnly(TorchDispatchMode):
    """Gives zeros of the right shape for every operation that is counted."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        device = next(value.device for value in args if isinstance(value, torch.Tensor))
        on_meta = tree_map_only(torch.Tensor, lambda values: values.to("meta"), (args, kwargs))
        shapes = func(*on_meta[0], **on_meta[1])
        return tree_map_only(torch.Tensor, lambda values: torch.zeros_like(values, device=device), shapes)


@contextlib.contextmanager
def _plain(model: TermRetrievalModel) -> Iterator[None]:
    """The model as it is counted: without dropout, which would draw, without checkpointing, attention as products.

    The counter knows no FlashAttention package and no fused attention on a CPU (torch 2.13).
    """
    encoders = {
        module: module.config._attn_implementation
        for module in (model.audio_tower.encoder, getattr(model._text_encoder, "encoder", None))
        if isinstance(module, PreTrainedModel)
    }
    with evaluation_mode(model, with_graph=True):
        try:
            for encoder in encoders:
                encoder.set_attn_implementation("eager")
            yield
        finally:
            for encoder, implementation in encoders.items():
                encoder.set_attn_implementation(implementation)


def _trained(module: torch.nn.Module) -> list[torch.Tensor]:
    return [values for values in module.parameters() if values.requires_grad]


def _frames(model: TermRetrievalModel, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    pcm_1S = torch.zeros(1, num_samples, dtype=torch.int16, device=model.device)
    return model.audio_frames(pcm_1S, torch.tensor([num_samples], device=model.device))


def _probe_lengths(model: TermRetrievalModel) -> list[int]:
    """Samples of three clips: whole seconds, because some encoders work on chunks of one."""
    second = int(min(1.0, model.audio_tower.max_seconds / 3) * SAMPLING_RATE)
    return [second, 2 * second, 3 * second]


def _computed_frames(model: TermRetrievalModel, num_samples: Sequence[int]) -> list[int]:
    """Frames that the tower computes for a clip alone: Whisper's has two more than belong to it."""
    with torch.no_grad(), _ShapesOnly():
        return [_frames(model, length)[0].shape[-2] for length in num_samples]


def _solve(rows: Sequence[Sequence[int]], counts: Sequence[int]) -> np.ndarray:
    """What each column costs, from what the rows cost together."""
    return np.linalg.solve(np.array(rows, float), np.array(counts, float))


def _masks(text_inputs: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in text_inputs if name.endswith("attention_mask")]


def _num_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Tokens of each text, those of all its pronunciations together: (N, L) or (N, A, L) to (N,)."""
    return mask.flatten(1).sum(1)


def _one_text(
    text_inputs: dict[str, torch.Tensor], num_tokens: dict[str, int], device: torch.device
) -> dict[str, torch.Tensor]:
    """A text of so many tokens a tower, its inputs named and shaped as those of a batch, which may be elsewhere."""
    inputs = {}
    for name, values in text_inputs.items():
        mask = f"{name.removesuffix('input_ids')}attention_mask" if name.endswith("input_ids") else name
        shape = (*[1] * (values.dim() - 1), num_tokens[mask]) if mask in num_tokens else (1, *values.shape[1:])
        inputs[name] = values.new_ones(shape, device=device)
    return inputs
