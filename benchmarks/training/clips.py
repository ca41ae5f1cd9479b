"""The clips that `benchmarks.training` trains on: three seconds of the demo corpus each, as arrays and as a pack."""

from __future__ import annotations

import json
import shutil
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset, load_dataset

from benchmarks.data.clips import DEMO_CORPUS, clip_name, speech_clips
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.packs.packing import pack_corpus

CLIP_SECONDS = 3.0


def three_second_clips(num_clips: int) -> list[np.ndarray]:
    """int16 `(48000,)` at 16 kHz, the same ones each time."""
    return list(speech_clips(num_clips, DEMO_CORPUS, seconds=(CLIP_SECONDS, CLIP_SECONDS)))


def waves(clips: list[np.ndarray]) -> list[np.ndarray]:
    """float32 in [-1, 1), as feature extractors take them."""
    return [clip.astype(np.float32) / 32768 for clip in clips]


def packed_clips(folder: Path, num_clips: int) -> Dataset:
    """The clips as rows of a pack in `folder`, each with a text of the corpus for its text and its term."""
    pack = folder / "pack"
    if not pack.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        recordings = folder / "recordings"
        recordings.mkdir(parents=True)
        texts = sorted({utterance.text for utterance in read_corpus(DEMO_CORPUS) if utterance.text})
        rows = []
        for number, (pcm, text) in enumerate(
            zip(three_second_clips(num_clips), islice(cycle(texts), num_clips), strict=True)
        ):
            soundfile.write(recordings / f"{clip_name(number)}.wav", pcm, SAMPLING_RATE)
            rows.append({"audio": f"{clip_name(number)}.wav", "text": text, "terms": [text]})
        manifest = "".join(json.dumps(row) + "\n" for row in rows)
        (recordings / "metadata.jsonl").write_text(manifest, encoding="utf-8")
        pack_corpus(recordings, pack)
    return load_dataset(str(pack), split="train", cache_dir=str(folder / "cache"))
