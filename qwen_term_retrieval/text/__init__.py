"""Terms: what counts as one, and how it is pronounced.

glossary.py         terms, normalised, and their identities
glossary_files.py   glossary files to entries
phonetics.py        text to phonemes, by engine
pronouncing.py      several phonemizers as one: by language, and every way to say a term
alphabet.py         texts to the classes of a phoneme head
languages.py        language codes, one way of writing each
wordlists.py        large lists of real terms from pinned packages
"""

from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, PhonemizerError, get_phonemizer, register_phonemizer
from qwen_term_retrieval.text.spellings import normalize_term, term_id

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
