"""An environment with NeMo, for this benchmark alone: NeMo's wheels beside the packages of the one that runs.

`nemo_toolkit[asr]` 3.0.0 is about 65 wheels and 400 MB; the first import takes a minute.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

NEMO = "nemo_toolkit[asr]==3.0.0"


def nemo_python(folder: Path = Path("outputs/nemo-venv")) -> Path:
    """The interpreter of that environment, which is made where there is none."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True)
        site_packages = next((folder / "lib").glob("python*/site-packages"))
        # `addsitedir`, so that what is installed in editable form is seen too.
        own = sysconfig.get_path("purelib")
        (site_packages / "beside.pth").write_text(f"import site; site.addsitedir({own!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", NEMO], check=True)
        done.touch()
    return python


def run_with_nemo(module: str, *arguments: str) -> None:
    """Run a module of the benchmarks with NeMo at hand; what it prints is printed."""
    subprocess.run([nemo_python(), "-m", module, *arguments], check=True)


def has_nemo() -> bool:
    """Whether this interpreter is the one with NeMo."""
    return Path(sys.prefix).resolve() == Path("outputs/nemo-venv").resolve()
