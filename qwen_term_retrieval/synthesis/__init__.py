"""Text to speech with engines that package registries carry, and the corpora made with them.

engines.py           the engines by name
espeak.py            espeak-ng
flite.py             flite
kokoro.py            Kokoro-82M
speech.py            what an engine returns, made uniform
rendering.py         texts to clips, each once, in the cache
ogg.py               Ogg Opus that is the same bytes each time
corpus_folder.py     clips to a corpus folder
glossary_corpus.py   a corpus of every term of a glossary
demo.py              what the demo corpus says
laptop.py            the corpus of the laptop recipe
everyday.py          phrases, numbers and letters to say
"""

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
