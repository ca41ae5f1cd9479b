"""Terms and tokens: what counts as one term, and how it is pronounced."""

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
