"""Our own rows of `benchmarks.data`, and those of loose files and memory maps; see `benchmarks.data.measure`.

    python -m benchmarks.data.rows NAME CLIPS [--profile]

Rows that read 64 clips at a time in an order known beforehand may gather them in batches of similar length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.data.clips import BenchmarkClips, clip_name
from benchmarks.data.measure import CLIPS_PER_BATCH, Pass, passes_over, serve, shuffled_batches
from benchmarks.profiles import top_functions
from qwen_term_retrieval.audio.collate import PcmBuffers
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.runs.sampling import LengthBucketedSampler

_FULL_SCALE = np.float32(1 / 32768)
SHUFFLE_SEED = 1


def open_memmap(clips: BenchmarkClips) -> Pass:
    """The unit of the table: what a careful user writes without any library."""
    rows = clips.dataset().with_format("arrow")[:]["audio"].combine_chunks()
    offsets, lengths = (rows.field(name).to_numpy() for name in ("offset", "length"))
    (shard,) = clips.pack.glob("shard_*.dat")
    samples = np.memmap(shard, np.int16, "r")
    return passes_over(
        lambda number: samples[offsets[number] : offsets[number] + lengths[number]].astype(np.float32) * _FULL_SCALE,
        len(offsets),
    )


def open_gather(clips: BenchmarkClips) -> Pass:
    reader = ClipReader(clips.dataset().shuffle(seed=SHUFFLE_SEED))
    return _gathering(reader, lambda seed: shuffled_batches(len(reader), seed))


def open_gather_bucketed(clips: BenchmarkClips) -> Pass:
    reader = ClipReader(clips.dataset().shuffle(seed=SHUFFLE_SEED))
    return _gathering(reader, lambda seed: _bucketed_batches(reader.num_samples, seed))


def _gathering(reader: ClipReader, batches: Callable[[int], Iterator[np.ndarray]]) -> Pass:
    buffers = PcmBuffers()
    # A fresh process imports and maps on first use; a cold pass should time the disk.
    reader.gather([0], buffers=buffers)

    def one_pass(seed: int) -> tuple[int, int]:
        num_clips = num_samples = 0
        for batch in batches(seed):
            _, num_samples_B = reader.gather(batch, buffers=buffers)
            num_clips += len(num_samples_B)
            num_samples += int(num_samples_B.sum())
        return num_clips, num_samples

    return one_pass


def _bucketed_batches(lengths: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    order = LengthBucketedSampler(lengths, CLIPS_PER_BATCH, seed=seed).order()
    return iter(np.split(order, range(CLIPS_PER_BATCH, len(order), CLIPS_PER_BATCH)))


def open_floor(clips: BenchmarkClips) -> Pass:
    """What memory allows: every sample is read once, at random as ever, and nothing is written."""
    reader = ClipReader(clips.dataset().shuffle(seed=SHUFFLE_SEED))

    def one_pass(seed: int) -> tuple[int, int]:
        num_clips = num_samples = 0
        for batch in shuffled_batches(len(reader), seed):
            for view in reader.views(batch):
                view.max()
                num_clips += 1
                num_samples += len(view)
        return num_clips, num_samples

    return one_pass


def open_rows(clips: BenchmarkClips) -> Pass:
    rows = clips.dataset().shuffle(seed=SHUFFLE_SEED)
    return passes_over(lambda number: rows[number]["audio"].pcm.copy(), len(rows))


def open_wav(clips: BenchmarkClips) -> Pass:
    return _soundfile(clips.wav, ".wav", len(clips.lengths))


def open_flac(clips: BenchmarkClips) -> Pass:
    return _soundfile(clips.flac, ".flac", len(clips.lengths))


def _soundfile(folder: Path, suffix: str, num_clips: int) -> Pass:
    paths = [str(folder / f"{clip_name(number)}{suffix}") for number in range(num_clips)]
    return passes_over(lambda number: soundfile.read(paths[number], dtype="int16")[0], num_clips)


def open_hf_audio(clips: BenchmarkClips) -> Pass:
    import datasets

    paths = [str(clips.wav / f"{clip_name(number)}.wav") for number in range(len(clips.lengths))]
    rows = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
    rows = rows.shuffle(seed=SHUFFLE_SEED)
    return passes_over(lambda number: soundfile.read(rows[number]["audio"]["path"], dtype="int16")[0], len(rows))


ROWS: dict[str, tuple[str, Callable[[BenchmarkClips], Pass]]] = {
    "np.memmap loop": ("slices of one file to float32: the unit", open_memmap),
    "read, keep nothing": ("the floor: every sample read once at random, none written", open_floor),
    "ours, shuffled batches": ("ClipReader.gather: int16, padded, into a buffer used again", open_gather),
    "ours, by length": ("the same, batches of like length, as the Trainer shuffles", open_gather_bucketed),
    "ours, row by row": ('row["audio"].pcm of a shuffled Dataset, copied', open_rows),
    "soundfile, WAV": ("soundfile.read of each file, int16", open_wav),
    "soundfile, FLAC": ("soundfile.read of each file, int16", open_flac),
    "HF Audio(decode=False)": ("rows of a shuffled Dataset of WAV paths + soundfile", open_hf_audio),
}


def profile(one_pass: Pass) -> str:
    """The functions that one pass, after one that warms it up, spends its time in."""
    one_pass(0)
    return top_functions(lambda: one_pass(1), lines=8)


def main() -> None:
    name, clips = sys.argv[1], BenchmarkClips(Path(sys.argv[2]))
    open_row: Callable[[BenchmarkClips], Any] = ROWS[name][1]
    if "--profile" in sys.argv:
        print(profile(open_row(clips)))
    else:
        serve(lambda: open_row(clips))


if __name__ == "__main__":
    main()
