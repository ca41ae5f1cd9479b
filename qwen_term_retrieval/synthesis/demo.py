"""The demo corpus: a curated glossary of four domains, said by voices that no two splits share.

Every training term is said by three engines; one clip in ten says its term inside a sentence; some clips hold no term.
A fifth of the terms of `validation` and `test` is never said in `train`. The glossary and the sentences lie beside the
`term_audio` builder; everything else follows from a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow
from qwen_term_retrieval.synthesis.rendering import SpeechRequest

_SPEEDS = (0.9, 0.95, 1.0, 1.05, 1.1)
_SEED = 2026

Voice = tuple[str, str]


@dataclass(frozen=True)
class SplitPlan:
    """What a split of the demo holds: its voices and how many clips of each kind.

    `num_unseen` terms of each domain are said in this split only. `voices` are grouped: every term is said once by a
    voice of each group.
    """

    name: str
    voices: tuple[tuple[Voice, ...], ...]
    num_terms: int | None
    num_unseen: int
    num_in_sentence: int
    num_carriers: int
    num_without_term: int


def _voices(engine: str, names: str) -> tuple[Voice, ...]:
    return tuple((engine, name) for name in names.split())


_TRAIN_KOKORO = (
    "af_heart am_adam bf_alice bm_fable af_bella am_eric bf_isabella bm_lewis af_nova am_puck af_sarah am_onyx"
)
_TRAIN_ESPEAK = "en-us en+f2@58 en-gb-scotland+m1 en-us+f4 en+m3@42 en-us-nyc+m7 en-gb-x-rp+Annie en-029+f5"
PLANS = (
    SplitPlan(
        name="train",
        voices=(
            _voices("kokoro", _TRAIN_KOKORO),
            _voices("flite", "rms slt kal16"),
            _voices("espeak", _TRAIN_ESPEAK),
        ),
        num_terms=None,
        num_unseen=0,
        num_in_sentence=130,
        num_carriers=20,
        num_without_term=45,
    ),
    SplitPlan(
        name="validation",
        voices=((("kokoro", "af_kore"), ("kokoro", "bm_george"), ("espeak", "en-us+steph")),),
        num_terms=100,
        num_unseen=5,
        num_in_sentence=30,
        num_carriers=4,
        num_without_term=15,
    ),
    SplitPlan(
        name="test",
        voices=((("kokoro", "am_michael"), ("kokoro", "bf_emma"), ("flite", "awb")),),
        num_terms=200,
        num_unseen=10,
        num_in_sentence=60,
        num_carriers=6,
        num_without_term=30,
    ),
)


def demo_rows(folder: str | Path) -> list[CorpusRow]:
    """The rows of the demo corpus from `glossary.json` and `sentences.json` in `folder`, train first."""
    folder = Path(folder)
    entries: list[dict[str, str]] = json.loads((folder / "glossary.json").read_text(encoding="utf-8"))
    sentences = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    rng = random.Random(_SEED)
    rng.shuffle(entries)
    domains = sorted({entry["domain"] for entry in entries})
    of_domain = {name: iter([entry for entry in entries if entry["domain"] == name]) for name in domains}
    unseen = {
        plan.name: [entry for name in domains for entry in islice(of_domain[name], plan.num_unseen)] for plan in PLANS
    }
    seen = [entry for entry in entries if not any(entry in held_out for held_out in unseen.values())]
    carriers, without_term = iter(sentences["carriers"]), iter(sentences["without_term"])
    rows: list[CorpusRow] = []
    for plan in PLANS:
        rows += _split_rows(
            plan,
            random.Random(f"{_SEED}/{plan.name}"),
            seen=seen[: plan.num_terms and plan.num_terms - len(unseen[plan.name])],
            unseen=unseen[plan.name],
            carriers=list(islice(carriers, plan.num_carriers)),
            without_term=list(islice(without_term, plan.num_without_term)),
        )
        rng.shuffle(seen)
    return rows


def _split_rows(
    plan: SplitPlan,
    rng: random.Random,
    *,
    seen: Sequence[dict[str, str]],
    unseen: Sequence[dict[str, str]],
    carriers: Sequence[tuple[str, str]],
    without_term: Sequence[str],
) -> Iterator[CorpusRow]:
    def row(voice: Voice, text: str, kind: str, before: str = "", after: str = "", **extra: Any) -> CorpusRow:
        request = SpeechRequest(*voice, text, rng.choice(_SPEEDS), before, after)
        columns = {"domain": None, "kind": kind, "seen": None, **extra}
        return CorpusRow(request, plan.name, is_term=kind != "no_term", extra=columns)

    terms = [(entry, True) for entry in seen] + [(entry, False) for entry in unseen]
    for voices in plan.voices:
        for voice, (entry, is_seen) in zip(_shuffled_cycle(voices, rng), terms, strict=False):
            yield row(voice, entry["term"], "term", domain=entry["domain"], seen=is_seen)
    voices = tuple(voice for group in plan.voices for voice in _in_proportion(group, plan.voices))
    in_sentence = rng.sample(seen, plan.num_in_sentence - len(unseen) // 3)
    chosen = [(entry, True) for entry in in_sentence]
    chosen += [(entry, False) for entry in rng.sample(unseen, len(unseen) // 3)]
    for voice, carrier, (entry, is_seen) in zip(
        _shuffled_cycle(voices, rng), _shuffled_cycle(carriers, rng), chosen, strict=False
    ):
        yield row(voice, entry["term"], "carrier", *carrier, domain=entry["domain"], seen=is_seen)
    for voice, text in zip(_shuffled_cycle(voices, rng), without_term, strict=False):
        yield row(voice, text, "no_term")


def _in_proportion(group: Sequence[Voice], groups: Sequence[Sequence[Voice]]) -> Sequence[Voice]:
    """The group repeated to about the size of the largest, so that every engine gets its share."""
    return tuple(group) * (max(map(len, groups)) // len(group))


def _shuffled_cycle(items: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    return cycle(rng.sample(items, len(items)))
