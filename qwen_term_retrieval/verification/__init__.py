"""What the sounds of a clip say about a term: emissions of a phoneme head against pronunciations.

pronunciations.py  `PronunciationBank`: the sounds of a glossary, as arrays
alignment.py       forward scores and best paths of pronunciations inside spans of clips
"""

from qwen_term_retrieval.verification.alignment import BestPaths, Pairs, best_paths, forward_scores
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

__all__ = ["BestPaths", "Pairs", "PronunciationBank", "best_paths", "forward_scores"]
