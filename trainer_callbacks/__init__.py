"""Trainer callbacks, one a file; they import as `qwen_term_retrieval.trainer_callbacks`.

memory_check.py            refuses a run that does not fit into memory
hard_negative_refresh.py   mines hard negatives anew
non_finite_guard.py        takes no step on a loss or gradient that is not finite
patience.py                ends a run that no longer gets better
save_every_epochs.py       saves a checkpoint every few epochs
recall_reporter.py         shows and keeps the recall of every evaluation
progress_line.py           draws the training bar with the loss
throughput.py              says how fast a run hears
token_throughput.py        says how fast a run reads, and what memory it takes
best_evaluation.py         says which evaluation is the best, for several of these
codebook_usage.py          says how many of its codes a quantizer uses
log_line.py                adds numbers to a line of the training log
"""

from qwen_term_retrieval.trainer_callbacks.codebook_usage import CodebookUsageCallback
from qwen_term_retrieval.trainer_callbacks.hard_negative_refresh import HardNegativeRefreshCallback
from qwen_term_retrieval.trainer_callbacks.memory_check import MemoryCheckCallback
from qwen_term_retrieval.trainer_callbacks.non_finite_guard import NonFiniteGuardCallback, NonFiniteStepsError
from qwen_term_retrieval.trainer_callbacks.patience import PatienceCallback
from qwen_term_retrieval.trainer_callbacks.progress_line import ProgressLineCallback
from qwen_term_retrieval.trainer_callbacks.recall_reporter import RecallReporterCallback
from qwen_term_retrieval.trainer_callbacks.save_every_epochs import SaveEveryEpochsCallback
from qwen_term_retrieval.trainer_callbacks.throughput import ThroughputCallback
from qwen_term_retrieval.trainer_callbacks.token_throughput import TokenThroughputCallback

__all__ = [
    "CodebookUsageCallback",
    "HardNegativeRefreshCallback",
    "MemoryCheckCallback",
    "NonFiniteGuardCallback",
    "NonFiniteStepsError",
    "PatienceCallback",
    "ProgressLineCallback",
    "RecallReporterCallback",
    "SaveEveryEpochsCallback",
    "ThroughputCallback",
    "TokenThroughputCallback",
]
