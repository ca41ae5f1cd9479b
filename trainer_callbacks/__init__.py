"""Trainer callbacks, one a file; they import as `qwen_term_retrieval.trainer_callbacks`."""

from qwen_term_retrieval.trainer_callbacks.hard_negative_refresh import HardNegativeRefreshCallback
from qwen_term_retrieval.trainer_callbacks.memory_check import MemoryCheckCallback
from qwen_term_retrieval.trainer_callbacks.non_finite_guard import NonFiniteGuardCallback, NonFiniteStepsError
from qwen_term_retrieval.trainer_callbacks.patience import PatienceCallback
from qwen_term_retrieval.trainer_callbacks.progress_line import ProgressLineCallback
from qwen_term_retrieval.trainer_callbacks.recall_reporter import RecallReporterCallback
from qwen_term_retrieval.trainer_callbacks.save_every_epochs import SaveEveryEpochsCallback
from qwen_term_retrieval.trainer_callbacks.throughput import ThroughputCallback

__all__ = [
    "HardNegativeRefreshCallback",
    "MemoryCheckCallback",
    "NonFiniteGuardCallback",
    "NonFiniteStepsError",
    "PatienceCallback",
    "ProgressLineCallback",
    "RecallReporterCallback",
    "SaveEveryEpochsCallback",
    "ThroughputCallback",
]
