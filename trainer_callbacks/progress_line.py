"""The training bar with the loss behind it, in place of a dict of numbers a line."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

_SHOWN = {"loss": "loss", "temperature": "temperature", "clips_per_second": "clips/s"}


class ProgressLineCallback(ProgressCallback):
    """Show loss, temperature and clips a second behind the bar; the history keeps every number.

    Takes the place of `transformers.ProgressCallback`:

    Example:
        >>> trainer.remove_callback(ProgressCallback)         # doctest: +SKIP
        >>> trainer.add_callback(ProgressLineCallback())      # doctest: +SKIP
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            shown = {label: f"{logs[name]:.4g}" for name, label in _SHOWN.items() if name in logs}
            self.training_bar.set_postfix(shown)
