"""Packs and corpora on the Hub open by the name of their repository, as those on this machine do by their folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from qwen_term_retrieval import pack_corpus
from tests.doubles.local_hub import LocalHub

# Clients read the Hub's address when they are imported: each load is a process of its own.
LOAD = """
import json, sys
import datasets
import qwen_term_retrieval

datasets.disable_progress_bars()
name, options = sys.argv[1], json.loads(sys.argv[2])
rows = datasets.load_dataset(name, split="train", **options)
found = [[row["key"], type(row["audio"]).__name__, row["audio"].pcm[:100].tolist()] for row in rows]
print(json.dumps(found))
"""


def load(hub: LocalHub, home: Path, name: str, *, offline: bool = False, **options) -> list:
    environment = hub.environment(home) | {"HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", LOAD, name, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def publish(hub: LocalHub, name: str, folder: Path) -> None:
    hub.repositories[name] = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}


def expected(corpus: Path, kind: str) -> list:
    files = sorted((corpus / "train").iterdir())
    return [[f"train/{f.stem}", kind, soundfile.read(f, dtype="int16")[0][:100].tolist()] for f in files]


@pytest.fixture
def hub():
    with LocalHub() as hub:
        yield hub


def test_a_pack_on_the_hub_is_opened_by_name_and_then_without_a_network(corpus, hub, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    publish(hub, "user/pack", tmp_path / "pack")
    assert load(hub, tmp_path / "home", "user/pack") == expected(corpus, "Clip")
    downloads = [path for command, path in hub.requests if command == "GET" and path.endswith(".dat")]
    assert len(downloads) == 1
    hub.requests.clear()
    assert load(hub, tmp_path / "home", "user/pack", offline=True) == expected(corpus, "Clip")
    assert hub.requests == []


def test_a_pack_on_the_hub_is_verified_as_it_streams(corpus, hub, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    publish(hub, "user/pack", tmp_path / "pack")
    assert load(hub, tmp_path / "home", "user/pack", verify=True, streaming=True) == expected(corpus, "Clip")


def test_a_corpus_on_the_hub_is_packed_or_served_from_its_files(corpus, hub, tmp_path):
    publish(hub, "user/corpus", corpus)
    assert load(hub, tmp_path / "home", "user/corpus", packed=False) == expected(corpus, "FileClip")
    assert load(hub, tmp_path / "home", "user/corpus") == expected(corpus, "Clip")
