"""The `term_audio` builder: corpora and packs as `datasets`, and the demo corpus."""

from qwen_term_retrieval.builders.term_audio.builder import TermAudio, TermAudioConfig

__all__ = ["TermAudio", "TermAudioConfig"]
