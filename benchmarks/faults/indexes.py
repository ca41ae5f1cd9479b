"""Campaign `indexes` of `benchmarks.faults`: `qtr index` killed with SIGKILL, and single bits of an index flipped.

Kills are those of `kills.py`; the folder must end in the bytes of a run never interrupted, and what is in place must be
whole after each kill. Flips fall on an index of several parts with terms removed; `qtr verify` must find every one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.faults.kills import Command, attack
from benchmarks.verification.terms import real_terms
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.indexes.folder import damages_of
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.text.glossary import Glossary, Term

NUM_TERMS = 50_000
_NUM_FLIPPED_TERMS = 20_000
_DIM = 64


def index_command(work: Path, model: str) -> Command:
    glossary, out = work / "terms.txt", work / "made" / "index"
    glossary.write_text("\n".join(real_terms(NUM_TERMS)) + "\n", encoding="utf-8")

    def reset() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

    def check_after_kill() -> str:
        return "; ".join(damages_of(out)) if out.exists() else ""

    arguments = ["index", model, str(glossary), str(out), "--quiet"]
    under_way = ("plan.json", "done-000000000000.npz", "done-000000016384.npz", "done-000000032768.npz")
    return Command("index", arguments, out, reset, check_after_kill, under_way)


def make_index(folder: Path) -> Path:
    """An index of two parts with sounds, some of its terms removed."""
    terms = list(Glossary(real_terms(_NUM_FLIPPED_TERMS)))
    speaker = Speaker(lambda own: [[np.arange(1, 6, dtype=np.int16)] for _ in own], num_classes=9)
    index = TermIndex(_DIM, fingerprint="benchmark", hold="int8")
    index.add(terms[:-100], _vectors_of(terms[:-100]), speaker)
    index.save(folder)
    index.add(terms[-100:], _vectors_of(terms[-100:]), speaker)
    index.remove([terms[0].text, terms[-1].text])
    return index.save(folder, overwrite=True)


def _vectors_of(terms: list[Term]) -> torch.Tensor:
    """A row for each way that a term is said."""
    return torch.nn.functional.normalize(torch.randn(sum(len(term.sayings) for term in terms), _DIM), dim=1)


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def missed_flips(folder: Path, num_flips: int, seed: int) -> list[dict[str, Any]]:
    """Flips that are not found; each is taken back."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    missed = []
    for _ in tqdm(range(num_flips), desc="flipped bits of an index", disable=None):
        path = files[int(rng.integers(len(files)))]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        if not damages_of(folder):
            missed.append({"file": str(path.relative_to(folder)), "bit": bit})
        flip(path, bit)
    return missed


def run(work: Path, *, model: str | None, num_kills: int, num_flips: int, seed: int = 0) -> dict[str, Any]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found: dict[str, Any] = {"flips": num_flips, "missed": missed_flips(make_index(work / "flipped"), num_flips, seed)}
    if model is not None:
        found["kills"] = vars(attack(index_command(work, model), num_kills, seed))
    return found
