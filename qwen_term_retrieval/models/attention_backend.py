"""The attention that encoders are asked to run with, the precision it takes, and the refusal of what they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def attention_refused_by_name(attn_implementation: str | None, name: str) -> Iterator[None]:
    """Around the making of a stock encoder: say which setting asked for attention that it, or the machine, lacks.

    Raises:
        ValueError: the encoder was not made and an attention had been asked for.
    """
    try:
        yield
    except (ImportError, ValueError) as error:
        if attn_implementation is None:
            raise
        raise ValueError(
            f"attn_implementation {attn_implementation!r}: {name} does not run with it here. Leave it out for the best "
            f"that each tower has, or take sdpa or eager. ({' '.join(str(error).split())})"
        ) from error


def attention_precision(
    attn_implementation: str | None, device: torch.device, dtype: torch.dtype
) -> AbstractContextManager[None]:
    """Around a tower: bfloat16 autocast where FlashAttention, which takes no float32, would be given it.

    A Trainer puts its autocast around `forward` alone; terms are embedded and clips searched without.
    """
    too_precise = dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    if device.type == "cuda" and "flash" in (attn_implementation or "") and too_precise:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
