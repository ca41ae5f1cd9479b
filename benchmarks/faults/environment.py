"""Campaign `environment` of `benchmarks.faults`: the disk, the folder or a neighbour misbehaves.

Each fault must end in one line that says what is wrong, must leave no pack that is not whole, and nothing may be lost:
when the fault is gone, the same command goes on to the same bytes. Mounts are made in a namespace of their own
(`unshare -Urm`), so that nothing but this program sees them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.faults.kills import QTR, digest_of_folder, write_corpus

NUM_CLIPS = 200
RUN_LIMIT_S = 120


class FaultError(RuntimeError):
    """The library did not stand up to a fault; the message says how."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise FaultError(what)


def qtr(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(QTR), *map(str, arguments)], capture_output=True, text=True, timeout=RUN_LIMIT_S)


def in_namespace(script: str, *arguments: object) -> str:
    """Run a shell script as root of a mount namespace of its own; the script's standard output."""
    command = ["unshare", "-Urm", "sh", "-euc", script, "sh", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    check(result.returncode == 0, f"{result.stdout[-500:]}{result.stderr[-500:]}")
    return result.stdout


def in_python(code: str, home: Path, *arguments: object) -> str:
    """What a fresh Python process prints; `home` holds its caches, and what it knows of where packs are."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"HF_HOME": str(home)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT_S, env=environment)
    check(result.returncode == 0, result.stderr[-800:])
    return result.stdout.strip()


def full_disk(work: Path) -> str:
    """A file system with no room for the pack: an error; with room made, the same command finishes the same pack."""
    (work / "small-disk").mkdir()
    said = in_namespace(
        """
        mount -t tmpfs -o size=6m tmpfs "$3"
        if "$1" pack "$2" "$3/pack" --workers 2 --quiet 2> "$4/said"; then echo "packed into 6 MB"; exit 1; fi
        test ! -e "$3/pack"
        mount -o remount,size=256m "$3"
        "$1" pack "$2" "$3/pack" --workers 2 --quiet > "$4/packed"
        diff -r "$3/pack" "$4/pack" >&2
        cat "$4/said"
        """,
        *(QTR, work / "corpus", work / "small-disk", work),
    )
    lines = said.strip().splitlines()
    check(len(lines) == 1 and "space" in lines[0], f"not one line that says 'space': {said}")
    return lines[0]


def read_only_folder(work: Path) -> str:
    """Packing into a read-only file system: an error. Reading and verifying a pack on one: as ever."""
    (work / "read-only").mkdir()
    said = in_namespace(
        """
        mount -t tmpfs tmpfs "$3"; cp -r "$4/pack" "$3/pack"; mount -o remount,ro "$3"
        if "$1" pack "$2" "$3/other" --workers 2 --quiet 2> "$4/said"; then echo "packed"; exit 1; fi
        "$1" verify "$3/pack" --quiet >&2
        "$5" -c "$6" "$3/pack" "$4/read-only-cache" >&2
        cat "$4/said"
        """,
        *(QTR, work / "corpus", work / "read-only", work, sys.executable, READ_ALL),
    )
    lines = said.strip().splitlines()
    check(len(lines) == 1 and "read-only" in lines[0].lower(), f"not one line that says 'read-only': {said}")
    return lines[0]


READ_ALL = """
import sys
from datasets import load_dataset
import qwen_term_retrieval
rows = load_dataset(sys.argv[1], split="train", cache_dir=sys.argv[2])
print(sum(int(row["audio"].pcm.astype("int64").sum()) for row in rows))
"""

MOVED_WHILE_OPEN = """
import shutil, subprocess, sys
from pathlib import Path
from datasets import load_dataset
import qwen_term_retrieval
from qwen_term_retrieval.packs.format.open_shards import MissingShardError
pack, cache, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rows = load_dataset(str(pack), split="train", cache_dir=cache)
before = [row["audio"].pcm.tobytes() for row in rows]
moved = pack.with_name("moved")
if how == "moved":
    pack.rename(moved)
else:
    shutil.rmtree(pack)
assert [row["audio"].pcm.tobytes() for row in rows] == before, "an open pack changed"
rows.save_to_disk(cache + "-rows")
code = "import sys; from datasets import load_from_disk; import qwen_term_retrieval as q;"
code += "len(sys.argv) > 2 and q.register_pack(sys.argv[2]);"
code += "print(sum(len(row['audio'].pcm) for row in load_from_disk(sys.argv[1])))"
command = [sys.executable, "-c", code, cache + "-rows"]
lost = subprocess.run(command, capture_output=True, text=True)
assert lost.returncode and "MissingShardError" in lost.stderr and "register_pack" in lost.stderr, lost.stderr
if how == "moved":
    found = subprocess.run([*command, str(moved)], capture_output=True, text=True)
    assert found.stdout.split()[-1:] == [str(sum(map(len, before)) // 2)], found.stderr
print(next(line for line in lost.stderr.splitlines() if "MissingShardError: " in line).partition(": ")[2])
"""


def moved_while_open(work: Path) -> str:
    """An open pack is moved: who has it open reads on; others get an error, and the samples once told where it is."""
    shutil.copytree(work / "pack", work / "to-move")
    return in_python(
        MOVED_WHILE_OPEN, work / "moved-home", work / "to-move", work / "moved-cache", "moved"
    ).splitlines()[-1]


def deleted_while_open(work: Path) -> str:
    """An open pack is deleted: who has it open reads on; others get an error."""
    shutil.copytree(work / "pack", work / "to-delete")
    return in_python(
        MOVED_WHILE_OPEN, work / "deleted-home", work / "to-delete", work / "deleted-cache", "deleted"
    ).splitlines()[-1]


def two_packers(work: Path) -> str:
    """Two `qtr pack` into one folder at once: one makes the pack, the other says why it does not."""
    command = [str(QTR), "pack", str(work / "corpus"), str(work / "contested"), "--workers", "2", "--quiet"]
    packers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    ends = [(packer.communicate(timeout=RUN_LIMIT_S)[1], packer.returncode) for packer in packers]
    check(sorted(code for _, code in ends) == [0, 1], f"exit codes and errors: {ends}")
    check(digest_of_folder(work / "contested") == digest_of_folder(work / "pack"), "the pack has other bytes")
    (said,) = [errors.strip() for errors, code in ends if code]
    check("another process" in said or "is a pack already" in said, said)
    return said


def pickled_index(work: Path) -> str:
    """A legacy index with pickled objects: refused unless allowed."""
    code = """
import sys
import numpy as np
from pathlib import Path
from qwen_term_retrieval.packs.legacy import MMapAudioCollection
from qwen_term_retrieval.packs.format.shards import PackError
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "shard_00000.dat").write_bytes(np.arange(16000, dtype=np.int16).tobytes())
objects = np.array(["POD/1"], dtype=object)
places = {"offset": np.array([0]), "length": np.array([16000]), "sr": np.array([16000])}
np.savez(folder / "shard_00000.index.npz", key=objects, relpath=objects, dtype=np.array(["int16"], object), **places)
assert len(MMapAudioCollection(folder, allow_pickle=True).get_by_key("POD/1")[0]) == 16000
try:
    MMapAudioCollection(folder)
except PackError as error:
    print(error)
else:
    sys.exit("a pickled index was read without leave")
"""
    return in_python(code, work / "legacy-home", work / "legacy").splitlines()[0]


FAULTS: dict[str, Callable[[Path], str]] = {
    "full disk": full_disk,
    "read-only folder": read_only_folder,
    "pack moved while open": moved_while_open,
    "pack deleted while open": deleted_while_open,
    "two packers on one output": two_packers,
    "pickled index": pickled_index,
}


def run(work: Path) -> dict[str, Any]:
    """What each fault led to: the line that the user sees, or how the library failed."""
    shutil.rmtree(work, ignore_errors=True)
    write_corpus(work / "corpus", NUM_CLIPS, seed=0)
    qtr("pack", work / "corpus", work / "pack", "--quiet").check_returncode()
    results = {}
    for name, fault in tqdm(FAULTS.items(), desc="environment", disable=None):
        try:
            passed, said = True, fault(work)
        except (FaultError, subprocess.TimeoutExpired) as error:
            passed, said = False, str(error)
        results[name] = {"passed": passed, "said": said.replace(str(work.absolute()), "…")}
    return results
