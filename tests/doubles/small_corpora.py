"""Small corpora, and a cache of its own for a test that packs and loads: fixtures of every room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import soundfile

from qwen_term_retrieval.packs.format import open_shards as locations

RATE = 16_000
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.termaudio
  - split: test
    path: test.termaudio
---
"""


@pytest.fixture
def hf_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(locations, "_paths", {})
    monkeypatch.setattr(locations, "_samples", {})
    return home


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """int16 noise (num_samples,) that differs from seed to seed."""

    def make(seed: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
        return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * rate), dtype=np.int16)

    return make


@pytest.fixture
def make_corpus(noise) -> Callable[..., Path]:
    """Writes a folder of FLAC with a `.termaudio` manifest a split and a card; returns it."""

    def make(folder: Path, clips_per_split: int = 6, rate: int = RATE, first_seed: int = 0) -> Path:
        for number, split in enumerate(("train", "test")):
            (folder / split).mkdir(parents=True)
            rows = []
            for i in range(clips_per_split):
                seed = first_seed + number * clips_per_split + i
                soundfile.write(folder / split / f"{i:04d}.flac", noise(seed, 0.3 + seed % 7 / 10, rate), rate)
                term = f"term {seed}"
                rows.append(
                    {
                        "audio": f"{split}/{i:04d}.flac",
                        "text": f"say {term}" if i % 2 else term,
                        "terms": [term] if i % 3 else [],
                        "term_starts": [0.1] if i % 3 and i % 2 else None,
                        "term_ends": [0.2] if i % 3 and i % 2 else None,
                        "speaker": f"voice {i % 2}",
                        "seen": i % 2 == 0,
                    }
                )
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.termaudio").write_text(lines, encoding="utf-8")
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def corpus(make_corpus, tmp_path) -> Path:
    return make_corpus(tmp_path / "corpus")
