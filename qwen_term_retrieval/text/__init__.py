"""Terms: what counts as one, and how it is pronounced.

glossary.py         glossaries: terms, each once, and what was left out
glossary_files.py   glossary files to entries
entries.py          what an entry may say, checked
spellings.py        which spellings are one term
spoken.py           what is written, as it is said
units.py            amounts in words
scripts.py          which writing a voice can read
phonetics.py        text to phonemes, by engine
pronouncing.py      several phonemizers as one: by language, and every way to say a term
ways.py             pronunciations of many texts as arrays
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
