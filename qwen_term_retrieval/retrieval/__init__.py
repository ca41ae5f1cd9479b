"""Glossary and clip to matches.

retriever.py      `TermRetriever`: a model and an index, asked for terms in speech
index.py          the vectors of a glossary, under changes and from many threads
indexes/          what an index is made of: parts, sketches, files
indexing/         a glossary to an index of one model
encoding.py       clips to the windows that a search scores
scoring.py        scores of windows against a bank, block by block
looks/            windows and sounds of a chunk to terms that are believed
stream.py         long and live audio, in overlapping chunks
hearing.py        what is heard in chunks: each term where it is surest, and each time that it is said
recordings/       recordings as people give them, one after another
formats/          answers as others read them
calibration.py    the threshold between heard and not heard
verifier_fitting.py  a verifier of a model's own searches
explaining.py     why a term was found in a clip, or was not
matches.py        what a search answers
"""

from qwen_term_retrieval.retrieval.calibration import Calibration, calibrate
from qwen_term_retrieval.retrieval.formats.tables import matches_to_pandas
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

__all__ = ["Calibration", "TermIndex", "TermMatch", "TermRetriever", "calibrate", "matches_to_pandas"]
