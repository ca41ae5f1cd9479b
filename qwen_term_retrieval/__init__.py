"""Hear a term in speech and find it in a glossary.

Importing this package makes its feature and its builder known to `datasets`; models, training and retrieval load torch
and transformers when one of their names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qwen_term_retrieval.audio.file_audio import FileAudio
from qwen_term_retrieval.packs.feature import MmapAudio
from qwen_term_retrieval.registration import register

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from qwen_term_retrieval.audio.clip_feature import to_hf_audio as to_hf_audio
    from qwen_term_retrieval.audio.collate import pad_pcm as pad_pcm
    from qwen_term_retrieval.audio.file_audio import FileAudio as FileAudio
    from qwen_term_retrieval.audio.file_audio import FileClip as FileClip
    from qwen_term_retrieval.audio.sources import Recording as Recording
    from qwen_term_retrieval.corpora.corpus import read_corpus as read_corpus
    from qwen_term_retrieval.corpora.readers.legacy_shards import legacy_utterances as legacy_utterances
    from qwen_term_retrieval.corpora.utterance import Utterance as Utterance
    from qwen_term_retrieval.errors import CorpusError as CorpusError
    from qwen_term_retrieval.errors import PackError as PackError
    from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator as RetrievalEvaluator
    from qwen_term_retrieval.models import AudioEmbeddings as AudioEmbeddings
    from qwen_term_retrieval.models import TermRetrievalConfig as TermRetrievalConfig
    from qwen_term_retrieval.models import TermRetrievalModel as TermRetrievalModel
    from qwen_term_retrieval.models import resolve_checkpoint as resolve_checkpoint
    from qwen_term_retrieval.packs.appending import append_corpus as append_corpus
    from qwen_term_retrieval.packs.clip_reader import ClipReader as ClipReader
    from qwen_term_retrieval.packs.exporting import export_pack as export_pack
    from qwen_term_retrieval.packs.feature import Clip as Clip
    from qwen_term_retrieval.packs.feature import MmapAudio as MmapAudio
    from qwen_term_retrieval.packs.format.open_shards import MissingShardError as MissingShardError
    from qwen_term_retrieval.packs.format.open_shards import register_pack as register_pack
    from qwen_term_retrieval.packs.legacy import MMapAudioCollection as MMapAudioCollection
    from qwen_term_retrieval.packs.merging import merge_packs as merge_packs
    from qwen_term_retrieval.packs.pack import Pack as Pack
    from qwen_term_retrieval.packs.packing import pack_corpus as pack_corpus
    from qwen_term_retrieval.packs.writing.parts import make_part as make_part
    from qwen_term_retrieval.pretraining.audio import NestConfig as NestConfig
    from qwen_term_retrieval.pretraining.audio import NestForPreTraining as NestForPreTraining
    from qwen_term_retrieval.pretraining.audio import PretrainingTrainer as PretrainingTrainer
    from qwen_term_retrieval.pretraining.audio.nemo import convert_nemo as convert_nemo
    from qwen_term_retrieval.pretraining.text.exporting import export_encoder as export_encoder
    from qwen_term_retrieval.retrieval.formats.tables import matches_to_pandas as matches_to_pandas
    from qwen_term_retrieval.retrieval.index import TermIndex as TermIndex
    from qwen_term_retrieval.retrieval.matches import TermMatch as TermMatch
    from qwen_term_retrieval.retrieval.retriever import TermRetriever as TermRetriever
    from qwen_term_retrieval.text.glossary import Glossary as Glossary
    from qwen_term_retrieval.text.glossary import Term as Term
    from qwen_term_retrieval.text.spellings import normalize_term as normalize_term
    from qwen_term_retrieval.tokens.large_token_dataset import LargeTokenDataset as LargeTokenDataset
    from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs as MmapPairs
    from qwen_term_retrieval.tokens.mmap_pairs import pack_pairs as pack_pairs
    from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens as MmapTokens
    from qwen_term_retrieval.tokens.packing import pack_tokens as pack_tokens
    from qwen_term_retrieval.tokens.token_pack import TokenPack as TokenPack
    from qwen_term_retrieval.training.arguments import TermRetrievalArguments as TermRetrievalArguments
    from qwen_term_retrieval.training.trainer import TermRetrievalTrainer as TermRetrievalTrainer
    from qwen_term_retrieval.workers import MapExecutor as MapExecutor

_HOME = {
    "AudioEmbeddings": "models",
    "Clip": "packs.feature",
    "ClipReader": "packs.clip_reader",
    "CorpusError": "errors",
    "FileAudio": "audio.file_audio",
    "FileClip": "audio.file_audio",
    "Glossary": "text.glossary",
    "LargeTokenDataset": "tokens.large_token_dataset",
    "MMapAudioCollection": "packs.legacy",
    "MapExecutor": "workers",
    "MissingShardError": "packs.format.open_shards",
    "MmapAudio": "packs.feature",
    "MmapPairs": "tokens.mmap_pairs",
    "MmapTokens": "tokens.mmap_tokens",
    "NestConfig": "pretraining.audio",
    "NestForPreTraining": "pretraining.audio",
    "Pack": "packs.pack",
    "PackError": "errors",
    "PretrainingTrainer": "pretraining.audio",
    "Recording": "audio.sources",
    "RetrievalEvaluator": "evaluation.evaluator",
    "Term": "text.glossary",
    "TermIndex": "retrieval.index",
    "TermMatch": "retrieval.matches",
    "TermRetrievalArguments": "training.arguments",
    "TermRetrievalConfig": "models",
    "TermRetrievalModel": "models",
    "TermRetrievalTrainer": "training.trainer",
    "TermRetriever": "retrieval.retriever",
    "TokenPack": "tokens.token_pack",
    "Utterance": "corpora.utterance",
    "append_corpus": "packs.appending",
    "convert_nemo": "pretraining.audio.nemo",
    "export_encoder": "pretraining.text.exporting",
    "export_pack": "packs.exporting",
    "legacy_utterances": "corpora.readers.legacy_shards",
    "make_part": "packs.writing.parts",
    "merge_packs": "packs.merging",
    "normalize_term": "text.spellings",
    "matches_to_pandas": "retrieval.formats.tables",
    "pack_corpus": "packs.packing",
    "pack_pairs": "tokens.mmap_pairs",
    "pack_tokens": "tokens.packing",
    "pad_pcm": "audio.collate",
    "read_corpus": "corpora.corpus",
    "register_pack": "packs.format.open_shards",
    "resolve_checkpoint": "models",
    "to_hf_audio": "audio.clip_feature",
}

__all__ = sorted(_HOME)

register((MmapAudio, FileAudio))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
