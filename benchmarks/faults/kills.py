"""Campaign `kills` of `benchmarks.faults`: `qtr pack` and `qtr append` killed with SIGKILL, again and again.

Half of the kills fall at a random instant of the run, half as soon as a file appears that is drawn beforehand, so that
sealing and publishing, which take a fraction of a second, are hit as well. Half kill the whole process group, half the
parent alone, whose workers must then end by themselves. A killed run is started again at once and may be killed again;
when one is let through, every byte of the pack must be that of a pack never interrupted.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from benchmarks.data.clips import speech_clips, speech_corpus
from benchmarks.faults.inputs import encoded
from qwen_term_retrieval.packs.pack import Pack

QTR = Path(sys.executable).with_name("qtr")
NUM_CLIPS = 1200
NUM_APPENDED = 400
LONGEST_CHAIN = 4
SHARD_BYTES = "8MiB"
RUN_LIMIT_S = 300.0
# Workers look for their parent twice a second.
ORPHANS_END_WITHIN_S = 5.0
POLL_S = 0.0005


def digest_of_folder(folder: Path) -> dict[str, str]:
    """xxh3 of every file below a folder."""
    return {
        str(path.relative_to(folder)): xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_corpus(folder: Path, num_clips: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, pcm in enumerate(speech_clips(num_clips, speech_corpus(), seed)):
        (folder / f"{folder.name}-{number:05d}.flac").write_bytes(encoded(pcm, "flac"))


@dataclass
class Command:
    """A command under attack: how to run it, where its files appear, and what must stay true after a kill."""

    name: str
    arguments: list[str]
    out: Path
    reset: Callable[[], None]
    check_after_kill: Callable[[], str]
    under_way: tuple[str, ...] = ("part_0000000.arrow", "part_0000004.pcm")
    expected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(QTR), *self.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def learn(self) -> None:
        """Run it undisturbed, for what it makes and how long it takes."""
        self.reset()
        started = time.monotonic()
        process = self.start()
        _, errors = process.communicate(timeout=RUN_LIMIT_S)
        if process.returncode:
            raise RuntimeError(f"qtr {self.name} failed undisturbed: {errors.decode()}")
        self.seconds = time.monotonic() - started
        self.expected = digest_of_folder(self.out)


def pack_command(work: Path) -> Command:
    corpus, out = work / "corpus", work / "packed" / "pack"
    write_corpus(corpus, NUM_CLIPS, seed=0)

    def reset() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

    def check_after_kill() -> str:
        return "" if not out.exists() or not Pack.open(out).verify() else "a damaged pack is in place"

    arguments = ["pack", str(corpus), str(out), "--workers", "2", "--shard-bytes", SHARD_BYTES, "--quiet"]
    return Command("pack", arguments, out, reset, check_after_kill)


def append_command(work: Path) -> Command:
    base, corpus, out = work / "base", work / "more", work / "appended" / "pack"
    write_corpus(corpus, NUM_APPENDED, seed=1)
    write_corpus(work / "first", NUM_APPENDED, seed=2)
    first = ["pack", str(work / "first"), str(base), "--workers", "2", "--shard-bytes", SHARD_BYTES, "--quiet"]
    subprocess.run([str(QTR), *first], check=True, stdout=subprocess.DEVNULL)

    def reset() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(base, out)

    def check_after_kill() -> str:
        return "; ".join(Pack.open(out).verify())

    arguments = ["append", str(corpus), str(out), "--workers", "2", "--quiet"]
    return Command("append", arguments, out, reset, check_after_kill)


def has_command(name: str) -> bool:
    return subprocess.run([str(QTR), name, "--help"], capture_output=True).returncode == 0


@dataclass
class Tally:
    """What the kills of one command came to."""

    kills: int = 0
    resumed: int = 0
    finished_before_the_kill: int = 0
    killed_when_done: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)


def attack(command: Command, num_kills: int, seed: int) -> Tally:
    """Kill the command `num_kills` times, in chains that each end with a run let through and compared."""
    rng = random.Random(seed)
    command.learn()
    names = sorted({*(Path(name).name for name in command.expected), "lock", *command.under_way})
    tally = Tally()
    with tqdm(total=num_kills, desc=f"killing qtr {command.name}", unit=" kills", disable=None) as progress:
        while tally.kills < num_kills and not _is_hopeless(tally):
            command.reset()
            before = tally.kills
            for _ in range(min(rng.randint(1, LONGEST_CHAIN), num_kills - tally.kills)):
                if not _kill_once(command, rng, names, tally):
                    break
            _let_through(command, tally)
            progress.update(tally.kills - before)
    return tally


def _is_hopeless(tally: Tally) -> bool:
    return len(tally.failures) >= 10 or tally.finished_before_the_kill > 2 * max(tally.kills, 20)


def _kill_once(command: Command, rng: random.Random, names: list[str], tally: Tally) -> bool:
    """Start the command and kill it; False if it was done before."""
    process = command.start()
    target = rng.choice(names) if rng.random() < 0.5 else None
    _wait_for_the_instant(process, command, target, rng.uniform(0, command.seconds))
    if process.poll() is not None:
        _, errors = process.communicate()
        if process.returncode and digest_of_folder(command.out) != command.expected:
            tally.failures.append({"problem": "a resumed run failed", "detail": errors.decode()})
        tally.finished_before_the_kill += 1
        return False
    whole_group = rng.random() < 0.5
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    tally.kills += 1
    tally.phases[_phase(command)] += 1
    problem = command.check_after_kill()
    if problem:
        tally.failures.append({"problem": problem, "target": target, "whole_group": whole_group})
    if not whole_group and not _group_is_gone(process.pid):
        tally.failures.append({"problem": f"workers live {ORPHANS_END_WITHIN_S} s after their parent"})
        os.killpg(process.pid, signal.SIGKILL)
    return True


def _wait_for_the_instant(process: subprocess.Popen[bytes], command: Command, target: str | None, delay: float) -> None:
    deadline = time.monotonic() + (delay if target is None else command.seconds * 2)
    while time.monotonic() < deadline and process.poll() is None:
        if target is not None and any(target in name for name in _names_below(command.out.parent)):
            return
        time.sleep(POLL_S)


def _names_below(folder: Path) -> list[str]:
    """File names below a folder, those that are being written included."""
    return [name for _, _, files in os.walk(folder) for name in files]


def _phase(command: Command) -> str:
    """How far a killed run had come, by the files it left."""
    if command.name in ("pack", "index") and command.out.exists():
        return "published"
    if command.name == "index":
        signs = (("meta.json", "meta.json"), ("tables", "spellings"), ("parts", "done-"))
        names = set(_names_below(command.out.parent))
        return next((phase for phase, sign in signs if any(sign in name for name in names)), "starting")
    of_base = [] if command.name == "pack" else _names_below(command.out.parents[1] / "base")
    names = set(_names_below(command.out.parent)).difference(of_base)
    for phase, sign in (("pack.json", "pack.json"), ("tables", ".parquet"), ("shards", "shard_"), ("parts", "part_")):
        if any(sign in name for name in names):
            return phase
    return "starting"


def _group_is_gone(group: int) -> bool:
    deadline = time.monotonic() + ORPHANS_END_WITHIN_S
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _let_through(command: Command, tally: Tally) -> None:
    """Run the command to its end and compare what it made."""
    if digest_of_folder(command.out) == command.expected:
        tally.killed_when_done += 1
        return
    process = command.start()
    _, errors = process.communicate(timeout=RUN_LIMIT_S)
    made = digest_of_folder(command.out)
    if process.returncode:
        tally.failures.append({"problem": "the last run failed", "detail": errors.decode()})
    elif made != command.expected:
        differing = sorted(n for n in {*made, *command.expected} if made.get(n) != command.expected.get(n))
        tally.failures.append({"problem": "other bytes", "files": differing})
    else:
        tally.resumed += 1
    left = sorted(path.name for path in command.out.parent.iterdir() if path != command.out)
    if left:
        tally.failures.append({"problem": "left behind", "files": left})


def run(work: Path, *, num_kills: int, seed: int = 0) -> dict[str, Any]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    commands = [pack_command(work)]
    if has_command("append"):
        commands.append(append_command(work))
    return {command.name: vars(attack(command, num_kills, seed)) for command in commands}
