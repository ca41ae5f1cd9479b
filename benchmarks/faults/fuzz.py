"""Campaign `fuzz` of `benchmarks.faults`: damaged inputs of every kind that the library opens.

An input passes if it is read as something, or refused by an error of ours that names it. A crash, a hang, or an error
of another library that comes through is a failure. What is kept in a pack must also never be wrong in silence: every
mutation of a pack's file must be found by `verify`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data.clips import speech_clips, speech_corpus
from benchmarks.faults.inputs import AUDIO_FORMATS, MANIFESTS, SUFFIX, encoded, manifest, mutated, tar_of
from benchmarks.faults.inputs import write_legacy_shard as write_legacy
from benchmarks.faults.isolation import CRASH, DONE, FOREIGN_ERROR, HANG, Outcome, isolated
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.legacy import MMapAudioCollection
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus

NUM_CLIPS = 4
PARALLEL = 2
PACK_FILES = {
    "pack.json": "pack.json",
    "shard": "shard_00000.dat",
    "index": "shard_00000.index.npz",
    "key index": "keys-00000.arrow",
    "table": "train-00000.parquet",
}
FAILURES = (CRASH, HANG, FOREIGN_ERROR)
SILENT = "wrong in silence"


@dataclass(frozen=True)
class Trial:
    """An input to try: `content` is what the seed's bytes became."""

    kind: str
    content: bytes
    mutations: str
    seed: int


class Seeds:
    """A folder of whole inputs, one of each kind, made of real speech."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clips = list(speech_clips(NUM_CLIPS, speech_corpus()))
        (folder / "corpus").mkdir(parents=True)
        self.audio = {kind: encoded(clips[0], kind) for kind in AUDIO_FORMATS}
        names = [f"{number}.flac" for number in range(NUM_CLIPS)]
        for name, pcm in zip(names, clips, strict=True):
            (folder / "corpus" / name).write_bytes(encoded(pcm, "flac"))
        self.manifests = {kind: manifest(kind, names) for kind in MANIFESTS}
        pairs = {f"{n}.json": b'{"text": "say it", "terms": ["it"]}' for n in range(NUM_CLIPS)}
        self.tar = tar_of(
            dict(sorted(({name: encoded(pcm, "flac") for name, pcm in zip(names, clips, strict=True)} | pairs).items()))
        )
        pack_corpus(folder / "corpus", folder / "pack", num_workers=1, quiet=True)
        (folder / "legacy").mkdir()
        self.legacy = write_legacy(folder / "legacy", clips).read_bytes()

    def contents(self) -> dict[str, tuple[bytes, bool]]:
        """The bytes of each kind, and whether they are text."""
        binary = self.audio | {"tar": self.tar, "legacy index": self.legacy}
        for kind, name in PACK_FILES.items():
            binary[kind] = (self.folder / "pack" / name).read_bytes()
        return {kind: (content, False) for kind, content in binary.items()} | {
            kind: (content, kind != "parquet") for kind, content in self.manifests.items()
        }

    def check(self) -> None:
        """Every whole input must be read, or refusing its mutations would prove nothing."""
        for kind, (content, _) in self.contents().items():
            outcome = run_trial(self.folder, Trial(kind, content, "none", 0))
            if outcome.status != DONE:
                raise RuntimeError(f"the {kind} is not read even when whole: {outcome.detail}")

    def trials(self, num_inputs: int, seed: int) -> list[Trial]:
        contents = list(self.contents().items())
        trials = []
        for number in range(num_inputs):
            kind, (content, is_text) = contents[number % len(contents)]
            changed, mutations = mutated(content, is_text=is_text, seed=seed + number)
            trials.append(Trial(kind, changed, mutations, seed + number))
        return trials


def trial_function(kind: str) -> Callable[[Path, Path, bytes], Any]:
    """What is done with an input of this kind: `(scratch, seeds folder, content)`."""
    if kind in AUDIO_FORMATS:
        return partial(_pack_file, f"clip{SUFFIX.get(kind, f'.{kind}')}", "raise")
    if kind in MANIFESTS:
        return partial(_pack_file, f"rows.{kind}", "skip")
    if kind == "tar":
        return partial(_pack_file, "shard-000000.tar", "skip")
    return _read_legacy if kind == "legacy index" else partial(_read_pack, PACK_FILES[kind])


def _pack_file(name: str, on_error: str, scratch: Path, seeds: Path, content: bytes) -> str:
    """Pack a recording alone, or a manifest or tar beside the recordings of the seeds."""
    shutil.copytree(seeds / "corpus", scratch / "corpus")
    path = scratch / "corpus" / name
    path.write_bytes(content)
    source = path if on_error == "skip" else [Utterance("clip", path)]
    return _pack(source, scratch, on_error)


def _pack(source: Path | list[Utterance], scratch: Path, on_error: str) -> str:
    summary = pack_corpus(source, scratch / "pack", num_workers=1, on_error=on_error, quiet=True)
    damages = Pack.open(scratch / "pack").verify()
    return f"{SILENT}: the new pack is damaged: {damages}" if damages else f"{summary.num_clips} clips"


def _read_legacy(scratch: Path, seeds: Path, content: bytes) -> str:
    shutil.copytree(seeds / "legacy", scratch / "legacy")
    (scratch / "legacy" / "shard_00000.index.npz").write_bytes(content)
    collection = MMapAudioCollection(scratch / "legacy")
    for key in collection.k2loc:
        collection.get_by_key(key)
    return f"{len(collection)} clips"


def _read_pack(name: str, scratch: Path, seeds: Path, content: bytes) -> str:
    """Open, verify and read a pack one of whose files was changed."""
    shutil.copytree(seeds / "pack", scratch / "pack")
    if content == (scratch / "pack" / name).read_bytes():
        return "unchanged"
    (scratch / "pack" / name).write_bytes(content)
    pack = Pack.open(scratch / "pack")
    if not pack.verify():
        return f"{SILENT}: verify finds nothing"
    _read_without_verifying(pack)
    return "found by verify"


def _read_without_verifying(pack: Pack) -> None:
    """Whoever does not verify may get wrong values or an error of ours, but no crash."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        for key in [*pack.keys()][:NUM_CLIPS]:
            np.sum(pack.find(key).clip.pcm)
    except PackError:
        pass
    try:
        for row in load_dataset(str(pack.folder), split="train", cache_dir=str(pack.folder.parent / "cache")):
            np.sum(row["audio"].pcm)
    except (PackError, DatasetGenerationError):
        pass


def run_trial(seeds: Path, trial: Trial) -> Outcome:
    return isolated(trial_function(trial.kind), seeds, trial.content)


def is_failure(outcome: Outcome) -> bool:
    return outcome.status in FAILURES or (outcome.status == DONE and str(outcome.value).startswith(SILENT))


def run(work: Path, *, num_inputs: int, seed: int = 0) -> dict[str, Any]:
    """Counts by kind and outcome; every failing input is kept in `work/failures`."""
    shutil.rmtree(work, ignore_errors=True)
    seeds = Seeds(work / "seeds")
    seeds.check()
    trials = seeds.trials(num_inputs, seed)
    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = list(
            tqdm(
                pool.map(partial(run_trial, seeds.folder), trials),
                total=len(trials),
                desc="fuzzed inputs",
                disable=None,
            )
        )
    failures = [(t, o) for t, o in zip(trials, outcomes, strict=True) if is_failure(o)]
    _keep(work / "failures", failures)
    return {
        "inputs": len(trials),
        "by_kind": _counts(trials, outcomes),
        "failures": [_described(trial, outcome) for trial, outcome in failures],
    }


def _described(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    of_trial = {"kind": trial.kind, "seed": trial.seed, "mutations": trial.mutations}
    return of_trial | {"status": outcome.status, "detail": outcome.detail or outcome.value}


def _counts(trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for trial, outcome in zip(trials, outcomes, strict=True):
        of_kind = counts.setdefault(trial.kind, {})
        status = SILENT if outcome.status == DONE and is_failure(outcome) else outcome.status
        of_kind[status] = of_kind.get(status, 0) + 1
    return counts


def _keep(folder: Path, failures: Sequence[tuple[Trial, Outcome]]) -> None:
    for trial, outcome in failures:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{trial.kind.replace(' ', '-')}-{trial.seed}"
        (folder / name).write_bytes(trial.content)
        (folder / f"{name}.txt").write_text(f"{trial.mutations}\n{outcome.detail or outcome.value}", encoding="utf-8")
