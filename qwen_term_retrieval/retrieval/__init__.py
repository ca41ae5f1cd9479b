"""Glossary and clip to matches.

retriever     `TermRetriever`: a model and an index, asked for terms in speech
index         the vectors of a glossary, searched exactly
index_folder  a saved index on disk
encoding      clips to the windows that a search scores
stream        long and live audio, in overlapping chunks
calibration   the threshold between heard and not heard
matches       what a search answers
fingerprint   which model an index belongs to
"""

from qwen_term_retrieval.retrieval.calibration import Calibration, calibrate
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

__all__ = ["Calibration", "TermIndex", "TermMatch", "TermRetriever", "calibrate"]
