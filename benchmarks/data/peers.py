"""The peers' rows of `benchmarks.data`: each library's own format and its own way to read it shuffled.

    python -m benchmarks.data.peers prepare NAME CLIPS
    python -m benchmarks.data.peers serve NAME CLIPS     # see `benchmarks.data.measure`

Runs in the peers' environment, which has none of this library's packages. Every row delivers lists of 64 arrays, at
random where the peer can, else through its best shuffle; no row pads into a batch, as ours do, but a view of a mapped
file is copied. Each peer gets raw int16 where its format can hold it, besides what its users commonly store.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.data.measure import CLIPS_PER_BATCH, Pass, batched, consume, passes_over, serve

SAMPLING_RATE = 16_000
CLIPS_PER_SHARD = 1000
SHUFFLE_BUFFER = 1000
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Peer:
    """`folder` below the clips is written by `prepare(clips, folder)`, and read by what `open(folder)` returns."""

    package: str
    folder: str
    does: str
    prepare: Callable[[Path, Path], None]
    open: Callable[[Path], Pass]


def wav_files(clips: Path) -> list[Path]:
    return sorted((clips / "wav").iterdir())


def wav_pcm(path: Path) -> np.ndarray:
    pcm, _ = soundfile.read(path, dtype="int16")
    return pcm


def prepare_mds(clips: Path, folder: Path) -> None:
    with mosaic_streaming().MDSWriter(out=str(folder), columns={"pcm": "bytes"}, size_limit=CHUNK_BYTES) as writer:
        for path in wav_files(clips):
            writer.write({"pcm": wav_pcm(path).tobytes()})


def open_mds(folder: Path) -> Pass:
    dataset = _mds(folder, shuffle=False)
    return passes_over(lambda number: np.frombuffer(dataset[number]["pcm"], np.int16), len(dataset))


def open_mds_shuffled(folder: Path) -> Pass:
    dataset = _mds(folder, shuffle=True)
    return lambda _: consume(batched(np.frombuffer(sample["pcm"], np.int16) for sample in dataset))


def _mds(folder: Path, *, shuffle: bool) -> Any:
    streaming = mosaic_streaming()
    streaming.base.util.clean_stale_shared_memory()
    return streaming.StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=CLIPS_PER_BATCH)


def mosaic_streaming() -> Any:
    # Its vision datasets alone need torchvision, whose wheel (0.28) does not load beside a CPU build of torch.
    stand_ins = {"torchvision.datasets": ["VisionDataset"], "torchvision.transforms.functional": ["to_tensor"]}
    for name in ("torchvision", "torchvision.transforms", *stand_ins):
        sys.modules[name] = module_from_spec(ModuleSpec(name, None))
        vars(sys.modules[name]).update(dict.fromkeys(stand_ins.get(name, []), object))
    import streaming.base.util

    return streaming


def prepare_webdataset_raw(clips: Path, folder: Path) -> None:
    _write_tars(clips, folder, "pcm", lambda path: wav_pcm(path).tobytes())


def prepare_webdataset_flac(clips: Path, folder: Path) -> None:
    _write_tars(clips, folder, "flac", lambda path: (clips / "flac" / f"{path.stem}.flac").read_bytes())


def _write_tars(clips: Path, folder: Path, suffix: str, encode: Callable[[Path], bytes]) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=CLIPS_PER_SHARD, verbose=0) as writer:
        for path in wav_files(clips):
            writer.write({"__key__": path.stem, suffix: encode(path)})


def open_webdataset_raw(folder: Path) -> Pass:
    return _webdataset_pass(folder, lambda sample: np.frombuffer(sample["pcm"], np.int16))


def open_webdataset_flac(folder: Path) -> Pass:
    return _webdataset_pass(folder, lambda sample: soundfile.read(BytesIO(sample["flac"]), dtype="int16")[0])


def _webdataset_pass(folder: Path, decode: Callable[[dict[str, Any]], np.ndarray]) -> Pass:
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))

    def one_pass(seed: int) -> tuple[int, int]:
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=seed, empty_check=False)
        return consume(batched(decode(sample) for sample in samples.shuffle(SHUFFLE_BUFFER)))

    return one_pass


def _lhotse_cuts(clips: Path) -> Any:
    from lhotse import CutSet, Recording

    return CutSet.from_cuts(Recording.from_file(path).to_cut() for path in wav_files(clips)).to_eager()


def prepare_lhotse_cuts(clips: Path, folder: Path) -> None:
    _lhotse_cuts(clips).to_file(folder / "cuts.jsonl.gz")


def open_lhotse_cuts(folder: Path) -> Pass:
    from lhotse import CutSet

    cuts = list(CutSet.from_file(folder / "cuts.jsonl.gz"))
    return passes_over(lambda number: cuts[number].load_audio()[0], len(cuts))


def prepare_lhotse_shar(clips: Path, folder: Path) -> None:
    _lhotse_cuts(clips).to_shar(folder, fields={"recording": "wav"}, shard_size=CLIPS_PER_SHARD)


def open_lhotse_shar(folder: Path) -> Pass:
    from lhotse import CutSet

    def one_pass(seed: int) -> tuple[int, int]:
        cuts = CutSet.from_shar(in_dir=folder, shuffle_shards=True, seed=seed).shuffle(buffer_size=SHUFFLE_BUFFER)
        return consume(batched(cut.load_audio()[0] for cut in cuts))

    return one_pass


def prepare_litdata(clips: Path, folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_BYTES)
    for number, path in enumerate(wav_files(clips)):
        writer[number] = wav_pcm(path).tobytes()
    writer.done()
    writer.merge()


def open_litdata(folder: Path) -> Pass:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True)
    return lambda _: consume(batched(np.frombuffer(sample, np.int16).copy() for sample in dataset))


PEERS = {
    "Mosaic MDS, random": Peer(
        "mosaicml-streaming", "mds", "dataset[i] of raw int16, shuffled indices", prepare_mds, open_mds
    ),
    "Mosaic MDS, its shuffle": Peer(
        "mosaicml-streaming", "mds", "iteration with shuffle=True, raw int16", prepare_mds, open_mds_shuffled
    ),
    "WebDataset, raw": Peer(
        "webdataset",
        "webdataset-raw",
        "tars of raw int16, shards shuffled, buffer of 1,000",
        prepare_webdataset_raw,
        open_webdataset_raw,
    ),
    "WebDataset, FLAC": Peer(
        "webdataset",
        "webdataset-flac",
        "tars of FLAC + soundfile, shards shuffled, buffer of 1,000",
        prepare_webdataset_flac,
        open_webdataset_flac,
    ),
    "Lhotse Shar": Peer(
        "lhotse", "shar", "WAV shards, shuffled, buffer of 1,000, load_audio()", prepare_lhotse_shar, open_lhotse_shar
    ),
    "Lhotse cuts, random": Peer(
        "lhotse", "cuts", "cuts of WAV files, shuffled, load_audio()", prepare_lhotse_cuts, open_lhotse_cuts
    ),
    "LitData": Peer("litdata", "litdata", "iteration with shuffle=True, raw int16", prepare_litdata, open_litdata),
}


def prepare(name: str, clips: Path) -> None:
    """Write the peer's copy of the clips; it appears whole or not at all."""
    peer = PEERS[name]
    folder = clips / "peers" / peer.folder
    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    peer.prepare(clips, partial)
    partial.rename(folder)


def main() -> None:
    action, name, clips = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if action == "prepare":
        prepare(name, clips)
    else:
        serve(lambda: PEERS[name].open(clips / "peers" / PEERS[name].folder))


if __name__ == "__main__":
    main()
