"""How a callback adds numbers to a line of the training log."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import TrainerState


def add_to_log(logs: dict[str, float], state: TrainerState, numbers: Mapping[str, float]) -> None:
    """Add `numbers` to the line that `on_log` was given, and to the history, which ends up in `trainer_state.json`.

    The Trainer has put a copy of the line into its history before it calls back (transformers 5.23).
    """
    logs.update(numbers)
    if state.log_history and state.log_history[-1].get("step") == state.global_step:
        state.log_history[-1].update(numbers)
