"""Types, beside the other tests: mypy keeps one of two processes busy for a minute or two, and the other goes on."""

import subprocess
import sys
from pathlib import Path


def test_types_agree():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
