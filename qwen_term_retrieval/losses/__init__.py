"""Embeddings to a scalar: losses that know of ranks, and nothing of data.

objective.py        what a run minimises: the weighted sum of the losses below
contrastive.py      multi-positive InfoNCE between spoken queries and candidate terms
sigmoid.py          the sigmoid loss, every pair a question of its own
hard_negatives.py   a clip against wrong terms chosen for it
no_term.py          clips without a term, whose windows must not look like any
phonemes.py         what is said, sound by sound
windows.py          one score of a query that has many windows
pairs.py            which query and which candidate belong together
score_blocks.py     all scores, a block at a time
"""

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.objective import Embeddings, Objective
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss

__all__ = [
    "Candidates",
    "Embeddings",
    "Objective",
    "Queries",
    "contrastive_loss",
    "hard_negative_loss",
    "no_term_loss",
    "sigmoid_loss",
]
