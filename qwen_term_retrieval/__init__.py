"""Hear a term in speech and find it in a glossary.

Importing this package makes its feature and its builder known to `datasets`; models, training and retrieval load torch
and transformers when one of their names is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from qwen_term_retrieval.registration import register

_HOME = {
    "AudioEmbeddings": "models",
    "Clip": "audio.feature",
    "ClipReader": "audio.clip_reader",
    "CorpusError": "audio.corpus",
    "FileAudio": "audio.files.file_audio",
    "FileClip": "audio.files.file_audio",
    "Glossary": "text.glossary",
    "MMapAudioCollection": "audio.legacy",
    "MapExecutor": "audio.pack_writing.workers",
    "MissingShardError": "audio.pack_format.locations",
    "MmapAudio": "audio.feature",
    "MmapTokens": "text.tokens",
    "Pack": "audio.pack",
    "PackError": "audio.pack_format.shards",
    "RetrievalEvaluator": "evaluation.evaluator",
    "Term": "text.glossary",
    "TermIndex": "retrieval.index",
    "TermMatch": "retrieval.matches",
    "TermRetrievalArguments": "training.arguments",
    "TermRetrievalConfig": "models",
    "TermRetrievalModel": "models",
    "TermRetrievalTrainer": "training.trainer",
    "TermRetriever": "retrieval.retriever",
    "TokenPack": "text.token_files",
    "Utterance": "audio.corpus",
    "append_corpus": "audio.appending",
    "export_pack": "audio.exporting",
    "legacy_utterances": "audio.legacy",
    "make_part": "audio.pack_writing.parts",
    "merge_packs": "audio.merging",
    "normalize_term": "text.glossary",
    "pack_corpus": "audio.packing",
    "pack_tokens": "text.token_packing",
    "pad_pcm": "audio.collate",
    "read_corpus": "audio.corpus",
    "register_pack": "audio.pack_format.locations",
    "resolve_checkpoint": "models",
    "to_hf_audio": "audio.feature",
}

__all__ = sorted(_HOME)

register()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
