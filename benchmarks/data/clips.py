"""The clips that every row of `benchmarks.data` reads: real speech cut to 0.5–3 s, as WAV, as FLAC and as a pack.

The recordings of a corpus are laid end to end, in order, and cut into clips of seeded lengths, so that any number of
clips can be had from any corpus: `outputs/laptop-corpus` where it is, else the demo corpus of this repository.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset, load_dataset
from tqdm import tqdm

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.packs.packing import pack_corpus

LAPTOP_CORPUS = Path("outputs/laptop-corpus")
DEMO_CORPUS = Path(__file__).parents[2] / "builders" / "term_audio" / "demo"
SHORTEST_S, LONGEST_S = 0.5, 3.0
SEED = 0


def speech_corpus() -> Path:
    return LAPTOP_CORPUS if LAPTOP_CORPUS.is_dir() else DEMO_CORPUS


def speech_clips(
    num_clips: int, corpus: Path, seed: int = SEED, seconds: tuple[float, float] = (SHORTEST_S, LONGEST_S)
) -> Iterator[np.ndarray]:
    """Yield int16 `(num_samples,)` clips at 16 kHz, cut from the recordings of `corpus` laid end to end.

    Args:
        seconds: the shortest and the longest that a clip may be.
    """
    rng = np.random.default_rng(seed)
    shortest, longest = (round(length * SAMPLING_RATE) for length in seconds)
    lengths = rng.integers(shortest, longest, num_clips, endpoint=True)
    recordings = cycle([utterance.audio for utterance in read_corpus(corpus)])
    rest = np.zeros(0, np.int16)
    for length in lengths:
        while len(rest) < length:
            rest = np.concatenate([rest, clip_pcm(next(recordings))])
        yield rest[:length]
        rest = rest[length:]


class BenchmarkClips:
    """A folder with the same clips as `wav/N.wav`, `flac/N.flac` (with a manifest) and `pack/`.

    `lengths`: int64 `(num_clips,)`, in samples.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def flac(self) -> Path:
        return self.folder / "flac"

    @property
    def wav(self) -> Path:
        return self.folder / "wav"

    @property
    def pack(self) -> Path:
        return self.folder / "pack"

    @property
    def lengths(self) -> np.ndarray:
        return np.load(self.folder / "lengths.npy")

    def dataset(self) -> Dataset:
        return load_dataset(str(self.pack), split="train", cache_dir=str(self.folder / "cache"))

    def make(self, num_clips: int) -> None:
        """Write all three forms, unless they are there already."""
        if self._is_made(num_clips):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.flac.mkdir(parents=True)
        self.wav.mkdir()
        lengths, rows = [], []
        clips = speech_clips(num_clips, speech_corpus())
        for number, pcm in enumerate(tqdm(clips, total=num_clips, desc="clips", unit=" clips", disable=None)):
            name = clip_name(number)
            soundfile.write(self.wav / f"{name}.wav", pcm, SAMPLING_RATE)
            soundfile.write(self.flac / f"{name}.flac", pcm, SAMPLING_RATE)
            rows.append({"audio": f"{name}.flac", "text": f"clip {number}", "terms": [f"clip {number}"]})
            lengths.append(len(pcm))
        manifest = "".join(json.dumps(row) + "\n" for row in rows)
        (self.flac / "metadata.jsonl").write_text(manifest, encoding="utf-8")
        pack_corpus(self.flac, self.pack)
        np.save(self.folder / "lengths.npy", np.array(lengths, np.int64))

    def _is_made(self, num_clips: int) -> bool:
        return (self.folder / "lengths.npy").is_file() and len(self.lengths) == num_clips


def clip_name(number: int) -> str:
    return f"{number:06d}"
