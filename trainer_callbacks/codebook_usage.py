"""How many of its codes a quantizer uses: a codebook that says the same of everything teaches nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.distributed import sum_over_ranks
from qwen_term_retrieval.trainer_callbacks.log_line import add_to_log


class CodeCounts:
    """How often each code of each book was given to a token; counted where the tokens lie."""

    def __init__(self, num_books: int, num_codes: int) -> None:
        self._counts_HC = torch.zeros(num_books, num_codes, dtype=torch.long)

    def add(self, tokens_BTH: torch.Tensor, num_frames_B: torch.Tensor) -> None:
        """Count the tokens that belong to clips."""
        num_books, num_codes = self._counts_HC.shape
        valid_BT = torch.arange(tokens_BTH.shape[1], device=tokens_BTH.device) < num_frames_B[:, None]
        places_BTH = tokens_BTH + num_codes * torch.arange(num_books, device=tokens_BTH.device)
        weights_BTH = valid_BT[..., None].expand_as(tokens_BTH)
        counts = torch.zeros(num_books * num_codes, dtype=torch.long, device=tokens_BTH.device)
        counts.scatter_add_(0, places_BTH.flatten(), weights_BTH.flatten().long())
        self._counts_HC = self._counts_HC.to(counts.device) + counts.view(num_books, num_codes)

    def over_ranks(self, device: torch.device) -> torch.Tensor:
        """counts_HC of all ranks, int64 on the CPU."""
        return sum_over_ranks(self._counts_HC.to(device)).cpu()

    def usage(self, device: torch.device) -> dict[str, float]:
        """Means over books, of all ranks, each of which calls it, be it that it counted nothing.

        Returns:
            `used`, codes that came at all; `entropy` of their frequencies in nats; `perplexity`, e to that; `top_share`
            of the most frequent code.
        """
        counts_HC = self.over_ranks(device).double()
        share_HC = counts_HC / counts_HC.sum(1, keepdim=True).clamp(min=1)
        entropy = float(-torch.special.xlogy(share_HC, share_HC).sum(1).mean())
        return {
            "used": float((counts_HC > 0).sum(1).double().mean()),
            "entropy": entropy,
            "perplexity": math.exp(entropy),
            "top_share": float(share_HC.amax(1).mean()),
        }


class CodebookUsageCallback(TrainerCallback):
    """Add `codes_used`, `code_perplexity` and `top_code_share` of the tokens since the last line to each log line.

    For models whose forward returns `tokens_BTH` and `num_frames_B`, and whose config has `num_books` and `num_codes`.
    Evaluation does not count. The numbers are those of all ranks, the same on each.

    Example:
        >>> trainer = PretrainingTrainer(..., callbacks=[CodebookUsageCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._codes: CodeCounts | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.on_train_end()
        if model is not None:
            self._count_anew(model)
            self._hook = model.register_forward_hook(self._count)

    def _count_anew(self, model: Any) -> None:
        self._codes = CodeCounts(model.config.num_books, model.config.num_codes)

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        if module.training and self._codes is not None:
            self._codes.add(output["tokens_BTH"], output["num_frames_B"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or self._codes is None:
            return
        usage = self._codes.usage(args.device)
        self._count_anew(model)
        numbers = {
            "codes_used": usage["used"], "code_perplexity": usage["perplexity"], "top_code_share": usage["top_share"]
        }  # fmt: skip
        add_to_log(logs, state, {name: float(f"{number:.5g}") for name, number in numbers.items()})

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
