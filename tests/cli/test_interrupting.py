"""Ctrl-C in long work, full and read-only places: real processes, real signals, real file systems."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import psutil
import pytest
import soundfile

QTR = [sys.executable, "-m", "qwen_term_retrieval.cli"]


def silent_wav(path, seconds, rate=48_000):
    """A recording of silence that takes no room on the disk and a while to resample."""
    size = seconds * rate * 2
    fmt = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    path.write_bytes(b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size))
    with path.open("r+b") as file:
        file.truncate(44 + size)


def interrupted(command, has_begun, num_children=0, **environment):
    """Run a command as a terminal does, press Ctrl-C once it has begun; give its exit code and what it said."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not has_begun() or len(psutil.Process(process.pid).children()) < num_children:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in errors, errors
    return process.returncode, output, errors


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_packing_cancels_what_is_queued_and_says_so_in_a_line(tmp_path, workers):
    (tmp_path / "corpus").mkdir()
    for number in range(30):
        silent_wav(tmp_path / "corpus" / f"{number}.wav", seconds=4_000)
    command = [*QTR, "pack", tmp_path / "corpus", tmp_path / "pack", "--workers", str(workers), "--quiet"]
    parts = tmp_path / "pack.incomplete"
    code, output, errors = interrupted(
        list(map(str, command)), lambda: len([*parts.rglob("*")]) > 1, num_children=workers if workers > 1 else 0
    )
    assert code == 130
    assert errors.strip() == "interrupted: the same command goes on from here"
    assert output == ""
    assert not (tmp_path / "pack").exists()


def test_ctrl_c_in_a_script_says_how_to_go_on(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, time\n"
        "from qwen_term_retrieval.refusals import one_line_errors\n"
        "with one_line_errors('--resume goes on from the last checkpoint'):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(60)\n"
    )
    code, _, errors = interrupted([sys.executable, str(script)], (tmp_path / "begun").exists)
    assert code == 130
    assert errors.strip() == "interrupted: --resume goes on from the last checkpoint"


@pytest.fixture(scope="module")
def mounts():
    """Runs a shell script that may mount file systems of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("file systems are mounted by root only")

    def run(script):
        return subprocess.run([unshare, "-m", "sh", "-c", script], capture_output=True, text=True, check=False)

    return run


def test_a_full_dev_shm_and_a_read_only_place_are_named_with_what_helps(mounts, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "only").mkdir()
    soundfile.write(tmp_path / "corpus" / "a.wav", [0.1, 0.2] * 4_000, 16_000)
    pack = f"{' '.join(QTR)} pack {tmp_path}/corpus"
    result = mounts(
        f"mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full\n"
        f"mount -t tmpfs -o ro tmpfs {tmp_path}/only\n"
        f"{pack} {tmp_path}/pack --workers 2 --quiet\n"
        f"{pack} {tmp_path}/only/pack --workers 1 --quiet\n"
    )
    full, read_only = result.stderr.strip().splitlines()
    assert full.startswith("error: processes cannot share memory here")
    assert "/dev/shm is full" in full
    assert "--workers 1" in full
    assert read_only.startswith(f"error: {tmp_path}/only/pack")
    assert "Read-only file system; it cannot be written to: give another place" in read_only
    assert "Errno" not in result.stderr
