"""Print the lowest versions that pyproject.toml names, as constraints for pip; `make test-floors` installs them.

torch stays at the version of constraints.txt: its floor is a build of several gigabytes for CUDA wherever pip knows of
no other.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    floors = dict(sorted(one.split(">=") for one in wanted))
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    floors["torch"] = re.search(r"^torch==(.+)$", tested, re.MULTILINE)[1]  # type: ignore[index]
    print("\n".join(f"{name}=={version}" for name, version in floors.items()))
