"""Glossary and clip to matches."""

from qwen_term_retrieval.retrieval.calibration import Calibration, calibrate
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

__all__ = ["Calibration", "TermIndex", "TermMatch", "TermRetriever", "calibrate"]
