"""What each part of a training buys on real speech: one change at a time, several seeds, one small budget.

    python -m benchmarks.real_speech.ablations.ablation       # every variant that has no result yet, the table
    python -m benchmarks.real_speech.ablations.ablation --variants base mined --seeds 0 1 2
    python -m benchmarks.real_speech.ablations.ablation --report   # the table of what is there

Every run sees the same number of clips: `STEPS` steps of `BATCH`, from `NUM_TEXTS` synthetic clips of the `laptop`
corpus (`python -m benchmarks.real_speech.laptop` makes it), with a Whisper-base tower and the phoneme tower. The budget
is a small part of the recipe's, so the numbers tell variants apart and are no one's best. Two sets of real speech are
searched among 10,000 and 100,000 other terms: the studio voice of the Asterisk prompts and the volunteers of KTuberling
(`judged_sets.py`). No training text is a text of either. A run's result is kept in the work folder, so that a second
call goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch

from benchmarks.real_speech.ablations.report import table_of_runs
from benchmarks.real_speech.asterisk import read_prompts, utterances
from benchmarks.real_speech.judged_sets import SHORT_WORDS, is_test_text
from benchmarks.real_speech.laptop import BANK, PACK
from benchmarks.real_speech.spelling import spell_out
from benchmarks.real_speech.term_banks import distinct_terms
from benchmarks.real_speech.volunteers import LANGUAGES, ktuberling_utterances, ktuberling_words, tuxpaint_utterances
from qwen_term_retrieval.evaluation.ranking import rank_of_gold
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.synthesis.rendering import SpeechRequest
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

logger = logging.getLogger("ablation")

TOWER = "openai/whisper-base"
NUM_TEXTS = 6_000
STEPS, BATCH = 160, 256
LORA_STEPS, LORA_BATCH = 48, 128
SEEDS = (0, 1, 2)
BANKS = {"+10k": 10_000, "+100k": 100_000}
WORK = Path("outputs/ablation")
BUDGET = (
    f"{STEPS} steps of {BATCH} on {NUM_TEXTS:,} synthetic clips, a small part of the laptop recipe's budget. Studio: "
    "Asterisk prompts of at most four words, one speaker, n = 341. Volunteers: KTuberling's English words, about two "
    "speakers, n = 72."
)
_DISTRACTOR_SEED = 20261121


class Named(Protocol):
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Variant:
    """One change from the first row of the table."""

    name: str
    what: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    corpus: str = "laptop"
    bank: bool = False
    """Whether the training glossary holds 60,000 terms that nobody speaks."""
    lora_after: str | None = None
    """The variant whose model of the same seed this one goes on from, with LoRA in its tower."""
    train_text_tower: bool = False
    """Whether a text encoder that came from elsewhere learns too."""


WINDOWS = {"sizes": [20, 30, 40, 55, 75, 100, 130], "stride": 5}
MINED = {"enable_hard_neg": True, "hard_neg_refresh_steps": 40}
BANK_NEGATIVES = {"bank_negatives": 2}
NOISE = {"augmented_copies": 2, "noise_snr_db": [5, 25], "speech_share": 0.2, "speech_snr_db": [5, 20]}

VARIANTS = (
    Variant("base", "frozen tower, pyramid, InfoNCE, clean clips of 430 voices; searched by windows of 0.4 to 2.6 s"),
    Variant("mean", "mean in place of the pyramid", model={"segments": (1,)}),
    Variant("sigmoid", "sigmoid loss in place of InfoNCE", training={"loss": "sigmoid"}),
    Variant("mined", "mined hard negatives", training=MINED),
    Variant("phonetic", "mined, half of them phonetic neighbours", training=MINED | {"hard_neg_phonetic_ratio": 0.5}),
    Variant(
        "bank mined", "60,000 unspoken terms: two a clip, and ten mined", training=MINED | BANK_NEGATIVES, bank=True
    ),
    Variant("augmented", "silence, noise, rooms, speed, telephones", training={"augmentation": NOISE}),
    Variant("4 voices", "the same texts by 4 voices", corpus="voices-4"),
    Variant("12 voices", "the same texts by 12 voices", corpus="voices-12"),
    Variant("30 voices", "the same texts by 30 voices", corpus="voices-30"),
    Variant("languages", "and 5,965 clips of volunteers in ten other languages", corpus="languages"),
    Variant("lora", "base, then 48 steps of 128 with LoRA in the tower", lora_after="base"),
    Variant("lora augmented", "the same, every visit distorted", training={"augmentation": NOISE}, lora_after="base"),
)
WHOLE_CLIP = Variant("whole clip", "base, searched by one vector of the whole clip")


# ---- speech -----------------------------------------------------------------------------------------------------


@functools.cache
def training_rows(corpus: str, work: Path) -> datasets.Dataset:
    """The training rows of a corpus, without any that says a text of a test set."""
    if corpus == "languages":
        return datasets.concatenate_datasets([_shared_columns(laptop_rows()), _shared_columns(volunteers_rows(work))])
    if corpus.startswith("voices-"):
        return _load(voices_pack(int(corpus.removeprefix("voices-")), work))
    return laptop_rows()


@functools.cache
def laptop_rows() -> datasets.Dataset:
    """`NUM_TEXTS` synthetic clips of the laptop corpus in which a term is said alone."""
    rows = datasets.load_dataset(str(PACK), split="train")
    said = (rows[name] for name in ("text", "terms", "language"))
    allowed = [
        row
        for row, (text, terms, language) in enumerate(zip(*said, strict=True))
        if language == "en" and list(terms) == [text] and not is_test_text(text)
    ]
    chosen = np.random.default_rng(0).choice(allowed, size=NUM_TEXTS, replace=False)
    return rows.select(np.sort(chosen))


def voices_pack(num_voices: int, work: Path) -> Path:
    """The texts of `laptop_rows`, each said by one of so many voices: flite's four, then espeak-ng's."""
    pack = work / "packs" / f"voices-{num_voices}"
    if not (pack / "pack.json").is_file():
        corpus = work / "corpora" / f"voices-{num_voices}"
        generator = np.random.default_rng(num_voices)
        espeak = sorted(get_engine("espeak").voices)
        drawn = np.random.default_rng(0).permutation(len(espeak))[: num_voices - 4]
        voices = [("flite", voice) for voice in get_engine("flite").voices]
        voices += [("espeak", espeak[index]) for index in drawn]
        rows = []
        for text in laptop_rows()["text"]:
            engine, voice = voices[generator.integers(num_voices)]
            rows.append(CorpusRow(SpeechRequest(engine, voice, text, round(generator.uniform(0.85, 1.2), 2))))
        write_corpus(rows, corpus, on_error="skip", overwrite=True)
        pack_corpus(corpus, pack)
    return pack


def volunteers_rows(work: Path) -> datasets.Dataset:
    """The volunteers' clips in other languages."""
    pack = work / "packs" / "languages"
    if not (pack / "pack.json").is_file():
        pack_corpus(tuxpaint_utterances(), pack)
    return _load(pack)


def _shared_columns(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.select_columns(["audio", "key", "text", "terms", "term_starts", "term_ends", "language", "duration"])


def _load(pack: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(pack), split="train")


@functools.cache
def test_sets(work: Path) -> dict[str, datasets.Dataset]:
    """The clips of each set of real speech, by the set's name."""
    prompts = [prompt for prompt in read_prompts().prompts if prompt.num_words <= SHORT_WORDS]
    sets = {
        "studio": (utterances(prompts), [prompt.text for prompt in prompts]),
        "volunteers": (ktuberling_utterances(), [word.text for word in ktuberling_words()]),
    }
    loaded = {}
    for name, (spoken, texts) in sets.items():
        pack = work / "packs" / name
        if not (pack / "pack.json").is_file():
            pack_corpus(spoken, pack)
        loaded[name] = datasets.load_dataset(str(pack), split="test")
        if sorted(loaded[name]["text"]) != sorted(texts):
            raise ValueError(f"{pack} does not hold the texts of the test set {name!r}: delete it")
    return loaded


@functools.cache
def distractors(work: Path) -> list[str]:
    """100,000 WordNet lemmas and medical words, none spelled like a text of a test set, in an order chance decided."""
    path = work / "distractors.json"
    if not path.is_file():
        own = [text for rows in test_sets(work).values() for text in rows["text"]]
        pool = distinct_terms([*wordnet_terms(), *medical_terms()], unlike=own)
        order = np.random.default_rng(_DISTRACTOR_SEED).permutation(len(pool))[: max(BANKS.values())]
        path.write_text(json.dumps([pool[index] for index in order]), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


# ---- one run ----------------------------------------------------------------------------------------------------


def run(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Train, test, and keep the numbers; the model stays only where another variant goes on from it."""
    started = time.monotonic()
    folder = work / "runs" / f"{variant.name.replace(' ', '-')}-{seed}"
    model = _model(variant, seed, work)
    args = _arguments(variant, seed, folder)
    trainer = TermRetrievalTrainer(
        model,
        args,
        training_rows(variant.corpus, work),
        glossary=Glossary.from_file(BANK) if variant.bank else None,
    )
    trainer.train()
    trained_s = time.monotonic() - started
    others_ND = model.encode_terms(distractors(work))
    ranks = test_ranks(model, others_ND, work)
    model.config.windows = None
    ranks_of_whole_clips = test_ranks(model, others_ND, work)
    model.config.windows = WINDOWS
    result = {
        "variant": variant.name,
        "seed": seed,
        "clips": len(trainer.train_clips or ()),
        "train_s": round(trained_s, 1),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "ranks": ranks,
        "ranks_whole_clip": ranks_of_whole_clips,
    }
    if any(other.lora_after == variant.name for other in VARIANTS):
        model.save_pretrained(folder / "model")
    shutil.rmtree(folder / "hard_negatives", ignore_errors=True)
    return result | {"settings": dataclasses.asdict(variant)}


def _model(variant: Variant, seed: int, work: Path) -> TermRetrievalModel:
    torch.manual_seed(seed)
    if variant.lora_after is None:
        languages = {language: f"espeak:{language}" for language in LANGUAGES} if variant.corpus == "languages" else {}
        settings = {"text_tower_config": {"languages": languages}, "windows": WINDOWS, "embedding_dim": 384}
        model = TermRetrievalModel(TermRetrievalConfig(audio_tower=TOWER, **settings | variant.model))
        if variant.train_text_tower:
            model.train_text_tower()
        return model
    model = TermRetrievalModel.from_pretrained(work / "runs" / f"{variant.lora_after}-{seed}" / "model")
    model.add_lora(16, 32, 0.1)
    return model


def _arguments(variant: Variant, seed: int, folder: Path) -> TermRetrievalArguments:
    lora = variant.lora_after is not None
    settings: dict[str, Any] = {
        "max_steps": LORA_STEPS if lora else STEPS,
        "per_device_train_batch_size": LORA_BATCH if lora else BATCH,
        "learning_rate": 5e-4 if lora else 1.5e-3,
        "warmup_steps": 8 if lora else 30,
    }
    return small_run(folder, seed, **settings | variant.training)


def test_ranks(model: TermRetrievalModel, others_ND: torch.Tensor, work: Path) -> dict[str, dict[str, list[int]]]:
    """Rank of each test clip's text among the texts of its set and the distractors of each bank."""
    ranks: dict[str, dict[str, list[int]]] = {}
    for name, rows in test_sets(work).items():
        said = [spell_out(text) for text in rows["text"]]
        own = list(dict.fromkeys(said))
        gold = [[own.index(text)] for text in said]
        own_ND = model.encode_terms(own)
        audio = model.encode_audio([clip.pcm for clip in rows["audio"]])
        ranks[name] = {
            bank: rank_of_gold(
                audio.vectors, torch.cat([own_ND, others_ND[:count]]), gold, window_mask=audio.mask
            ).tolist()
            for bank, count in BANKS.items()
        }
    return ranks


def recalls(ranks: Mapping[str, Mapping[str, list[int]]], k: int = 10) -> dict[str, float]:
    return {
        f"{test} {bank}": round(float(np.mean(np.array(row) <= k)), 3)
        for test, of_bank in ranks.items()
        for bank, row in of_bank.items()
    }


def run_variants(
    doc: str | None,
    variants: Sequence[Named],
    work: Path,
    run: Callable[[Any, int, Path], dict[str, Any]],
    report: Callable[[Path], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """A program that runs every variant with every seed that has no result yet, and prints the table of all.

    Args:
        doc: what `--help` says.
        work: folder of packs and results, unless `--work` names one.
        run: variant, seed and folder -> its numbers.
        report: folder of results -> the table.
    """
    names = [variant.name for variant in variants]
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--work", type=Path, default=work, help="folder of packs and results of runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    datasets.disable_progress_bars()
    torch.set_num_threads(options.threads)
    results = options.work / "results"
    results.mkdir(parents=True, exist_ok=True)
    chosen = [variant for variant in variants if variant.name in options.variants and not options.report]
    for seed in options.seeds:
        for variant in chosen:
            path = results / f"{variant.name.replace(' ', '-')}-{seed}.json"
            if path.is_file():
                continue
            found = run(variant, seed, options.work)
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
            logger.info("%s, seed %d: %.0f s, R@10 %s", variant.name, seed, found["train_s"], recalls(found["ranks"]))
    print(report(results))


def small_run(folder: Path, seed: int, **settings: Any) -> TermRetrievalArguments:
    """Settings of a run on the CPU of which nothing stays but its numbers."""
    kept: dict[str, Any] = {
        "output_dir": str(folder),
        "overwrite": True,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.05,
        "seed": 0,  # of distortions, so that seeds share their cached frames
        "data_seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "patience": 0,
        "logging_steps": 20,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return TermRetrievalArguments(**(kept | settings))


def main(arguments: Sequence[str] | None = None) -> None:
    def report(results: Path) -> str:
        return table_of_runs("ablation", results, VARIANTS, WHOLE_CLIP, {"budget": BUDGET})

    run_variants(__doc__, VARIANTS, WORK, run, report, arguments)


if __name__ == "__main__":
    main()
