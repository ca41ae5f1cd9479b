"""What the sounds of a clip say about a term: emissions of a phoneme head against pronunciations.

pronounced.py      a glossary as a model says it, for people to look over
pronunciations.py  `PronunciationBank`: the sounds of a glossary, as arrays
prefix_tree.py     what pronunciations have in common at their start, held once
sound_search.py    the best pronunciations of a prefix tree for a clip's frames
sound_index.py     `SoundIndex`: a glossary searched by its sounds alone, terms added at any time
alignment.py       forward scores and best paths of pronunciations inside spans of clips
alignment_kernels.py  its loops, compiled
evidence.py        what speaks for a candidate, in plain numbers
verifier.py        `Verifier`: from evidence to a probability
fitting.py         a verifier of judged searches
spelling.py        `SpellingVerifier`: how likely a decoder is to write each candidate
"""

from qwen_term_retrieval.verification.alignment import BestPaths, Pairs, best_paths, forward_scores
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_index import SoundHits, SoundIndex
from qwen_term_retrieval.verification.spelling import SpellingScores, SpellingVerifier
from qwen_term_retrieval.verification.verifier import Verifier

__all__ = [
    "BestPaths",
    "Pairs",
    "PronunciationBank",
    "SoundHits",
    "SoundIndex",
    "SpellingScores",
    "SpellingVerifier",
    "Verifier",
    "best_paths",
    "forward_scores",
]
