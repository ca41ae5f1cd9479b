"""Text to speech with engines that package registries carry, and the corpora made with them."""

from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import ENGINE_NAMES, SpeechEngine, get_engine
from qwen_term_retrieval.synthesis.glossary_corpus import synthesize_glossary
from qwen_term_retrieval.synthesis.laptop import make_laptop_corpus
from qwen_term_retrieval.synthesis.rendering import RenderedClip, RenderReport, SpeechRequest, read_rendered, render
from qwen_term_retrieval.synthesis.speech import Speech

__all__ = [
    "ENGINE_NAMES",
    "CorpusRow",
    "RenderReport",
    "RenderedClip",
    "Speech",
    "SpeechEngine",
    "SpeechRequest",
    "get_engine",
    "make_laptop_corpus",
    "read_rendered",
    "render",
    "synthesize_glossary",
    "write_corpus",
]
