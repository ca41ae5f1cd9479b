"""Transcripts by Whisper, the first half of every recogniser-then-match baseline.

Greedy English transcription without timestamps, by the stock `transformers` model on its stock 30 s input. A
transcript is kept in a JSON file by the content of the audio and of the weights, so that a second run costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.packages import file_sha256

WHISPER = "openai/whisper-base"
_SAVE_EVERY = 20


class WhisperTranscriber:
    """Hear int16 clips of up to 30 s at 16 kHz and write English.

    `folder` is a Hugging Face checkpoint folder of a multilingual Whisper. Raises ValueError when the checkpoint's
    generation settings cannot name English, transcription and the tokens to suppress.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.extractor = WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins)
        settings = self.model.generation_config
        for name in ("lang_to_id", "task_to_id", "no_timestamps_token_id", "suppress_tokens", "begin_suppress_tokens"):
            if not getattr(settings, name, None):
                raise ValueError(f"{folder}: generation_config.json has no {name}; is this a multilingual Whisper?")

    @torch.inference_mode()
    def transcribe(self, pcm: NDArray[np.int16]) -> str:
        waveform = pcm.astype(np.float32) / 32768
        features = self.extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = self.model.generate(features, language="en", task="transcribe", do_sample=False, num_beams=1)
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def weights_id(self) -> str:
        return file_sha256(self.folder / "model.safetensors")[:16]


def whisper_base() -> WhisperTranscriber:
    return WhisperTranscriber(resolve_checkpoint(WHISPER))


def transcribe_all(transcriber: WhisperTranscriber, clips: Sequence[NDArray[np.int16]], cache_file: Path) -> list[str]:
    """Transcripts of the clips in order, from `cache_file` where it has them; it is saved as the work goes on."""
    weights = transcriber.weights_id()
    cache: dict[str, str] = json.loads(cache_file.read_text(encoding="utf-8")) if cache_file.is_file() else {}
    keys = [f"{weights}:{xxhash.xxh3_128_hexdigest(pcm.tobytes())}" for pcm in clips]
    missing = {key: pcm for key, pcm in zip(keys, clips, strict=True) if key not in cache}
    progress = tqdm(missing.items(), desc="Whisper transcripts", unit="clip", disable=not missing)
    for done, (key, pcm) in enumerate(progress, start=1):
        cache[key] = transcriber.transcribe(pcm)
        if done % _SAVE_EVERY == 0 or done == len(missing):
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache_file) as file:
                file.write(json.dumps(cache, indent=0, ensure_ascii=False).encode())
    return [cache[key] for key in keys]
