"""Terms: what counts as one, and how it is pronounced.

glossary.py         terms, normalised, and their identities
glossary_files.py   glossary files to entries
phoneme_processes.py  many texts pronounced in several processes
phonetics.py        text to phonemes, by engine
pronouncing.py      several phonemizers as one: by language, and every way to say a term
alphabet.py         texts to the classes of a phoneme head
languages.py        language codes, one way of writing each
wordlists.py        large lists of real terms from pinned packages
"""

from qwen_term_retrieval.text.glossary import Glossary, Term, normalize_term, term_id
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, PhonemizerError, get_phonemizer, register_phonemizer

__all__ = [
    "Glossary",
    "GraphemeToPhoneme",
    "PhonemizerError",
    "Term",
    "get_phonemizer",
    "normalize_term",
    "register_phonemizer",
    "term_id",
]
