"""What pre-training is worth to a retriever, on real speech: its tower from scratch, and from three pre-trainings.

    python -m benchmarks.pretraining.worth                  # every run that has no result yet, then the table
    python -m benchmarks.pretraining.worth --arms scratch denoising --seeds 0
    python -m benchmarks.pretraining.worth --report         # the table of what is there
    python -m benchmarks.pretraining.worth --quick          # minutes, on the demo corpus: does it run?

Each arm begins with a Fast Conformer of 4M parameters: as it is drawn, or after the same number of steps of
pre-training on the same 20 hours: the volunteers' clips in ten languages, 2.6 hours, which are real, and synthetic
clips: the laptop corpus (`python -m benchmarks.real_speech.laptop` makes it) and sentences by formant voices. Then the
whole tower is trained as part of a retriever, the same number of steps on the same short clips, with several seeds;
beside them Whisper-base, frozen. Judged are Recall@10 among 10,000 other terms on two sets of real speech
(`benchmarks/real_speech/judged_sets.py`), as they are and under a second voice at 0 dB. No training text is a text of
either set. A pre-training that was stopped goes on from its checkpoint, and what has a result is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks import markdown
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.distortion import collate_distortions, distort
from qwen_term_retrieval.augmentation.planning import DistortionPlanner
from qwen_term_retrieval.evaluation.ranking import rank_of_gold
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.loading import load_rows
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.pretraining.audio import ClipSettings, NestClips, NestConfig, NestForPreTraining
from qwen_term_retrieval.pretraining.audio.arguments import AudioPretrainingArguments
from qwen_term_retrieval.pretraining.audio.data import fixed_visits
from qwen_term_retrieval.pretraining.audio.first_head import begin_at_frequencies
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer
from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.synthesis.rendering import SpeechRequest
from qwen_term_retrieval.trainer_callbacks import CodebookUsageCallback, ThroughputCallback
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

logger = logging.getLogger("worth")

WHISPER = "openai/whisper-base"
HOURS, NUM_SENTENCES = 20, 18_000
# A batch is padded to its longest clip: without the few long ones a step takes half of the time.
LONGEST_SECONDS = 1.5
# Batches are multiples of eight clips, and a step of pre-training has 48 s.
LONGEST_PRETRAINING_SECONDS, PRETRAINING_BATCH_SECONDS = 6.0, 48
SEEDS = (0, 1, 2)
BANK = 10_000
WINDOW_SECONDS, STRIDE_SECONDS = (0.4, 0.56, 0.8, 1.12, 1.52, 2.0, 2.64), 0.08
# An easier task than NEST's, as in the recipe `nest_demo`: with one book of 8,192 codes and holes of 400 ms so few
# steps do not leave the frequencies of the codes. Sixteen books give each hidden token sixteen targets.
TASK = {"num_codes": 256, "num_books": 16, "block_frames": 16, "mask_probability": 0.03}
NO_DROPOUT = {"dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}


@dataclass(frozen=True)
class Arm:
    """Where a tower comes from."""

    name: str
    what: str
    pretrained: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] | None = None


ARMS = (
    Arm("scratch", "as it is drawn", pretrained=False),
    Arm("clean", "masked tokens of clean speech"),
    Arm("denoising", "NEST: half of the clips under noise or another talker", augmentation={}),
    Arm("denoising + LayerNorm", "the same, windows normalised", True, {"normalize_input": True}, {}),
    Arm("whisper", "Whisper-base, frozen", pretrained=False),
)


@dataclass(frozen=True)
class Budget:
    """Steps of pre-training, steps of the retriever, and clips of one of these."""

    pretraining_steps: int
    steps: int
    batch: int

    @property
    def folder(self) -> str:
        """Where runs of this budget leave their results."""
        return f"worth-{self.pretraining_steps}-{self.steps}-{self.batch}"

    @classmethod
    def of(cls, folder: str) -> Budget:
        return cls(*map(int, folder.split("-")[1:]))

    def told(self) -> str:
        return (
            f"{self.pretraining_steps:,} steps of pre-training of {PRETRAINING_BATCH_SECONDS} s, then a retriever of "
            f"{self.steps} steps of {self.batch} clips"
        )


@dataclass(frozen=True)
class Speech:
    """What is trained and judged on.

    Attributes:
        pretraining, retriever: rows.
        judged: rows of each set of real speech.
        distractors: other terms, as many as are asked for.
    """

    pretraining: datasets.Dataset
    retriever: datasets.Dataset
    judged: dict[str, datasets.Dataset]
    distractors: list[str]


def real_speech(work: Path) -> Speech:
    from benchmarks.real_speech.ablations import ablation
    from benchmarks.real_speech.laptop import ENGLISH

    real = _no_longer_than(LONGEST_PRETRAINING_SECONDS, ablation.volunteers_rows(work))
    terms = datasets.load_dataset(str(ENGLISH), split="train")
    columns = ["audio", "key", "speaker", "duration"]
    synthetic = datasets.concatenate_datasets(
        [
            _no_longer_than(LONGEST_PRETRAINING_SECONDS, rows.select_columns(columns))
            for rows in (terms, datasets.load_dataset(str(sentences_pack(work)), split="train"))
        ]
    ).shuffle(seed=0)
    seconds = np.cumsum(synthetic.with_format("numpy")["duration"][:])
    wanted = HOURS * 3600 - float(np.sum(real.with_format("numpy")["duration"][:]))
    if seconds[-1] < wanted:
        raise ValueError(f"{HOURS} hours are wanted, but {wanted - seconds[-1]:.0f} s of synthetic speech are missing")
    synthetic = synthetic.select(range(int((seconds < wanted).sum())))
    return Speech(
        datasets.concatenate_datasets([real.select_columns(columns), synthetic]),
        _no_longer_than(LONGEST_SECONDS, ablation.laptop_rows()),
        ablation.test_sets(work),
        ablation.distractors(work)[:BANK],
    )


def _no_longer_than(seconds: float, rows: datasets.Dataset) -> datasets.Dataset:
    return rows.select(np.flatnonzero(rows.with_format("numpy")["duration"][:] <= seconds))


def sentences_pack(work: Path) -> Path:
    """Sentences that WordNet quotes, by formant voices: longer than the terms of the laptop corpus."""
    from benchmarks.real_speech.laptop import quoted_sentences

    pack = work / "packs" / "sentences"
    if not (pack / "pack.json").is_file():
        rng = random.Random(0)
        voices = [(engine, voice) for engine in ("flite", "espeak") for voice in get_engine(engine).voices]
        rows = [
            CorpusRow(SpeechRequest(*rng.choice(voices), text, rng.choice((0.9, 1.0, 1.1))), is_term=False)
            for text in rng.sample(quoted_sentences(20), NUM_SENTENCES)
        ]
        write_corpus(rows, work / "corpora" / "sentences", on_error="skip", overwrite=True)
        pack_corpus(work / "corpora" / "sentences", pack)
    return pack


def demo_speech(_: Path) -> Speech:
    rows = load_rows("builders/term_audio")
    spoken = rows["train"].filter(lambda terms: len(terms) == 1, input_columns="terms").select(range(32))
    glossary = json.loads(Path("builders/term_audio/glossary.json").read_text(encoding="utf-8"))
    names = [entry if isinstance(entry, str) else entry["term"] for entry in glossary]
    judged = rows["test"].filter(lambda text, terms: [text] == terms, input_columns=["text", "terms"]).select(range(8))
    others = [name for name in names if name not in judged["text"][:]]
    return Speech(rows["train"].select(range(64)), spoken, {"demo": judged}, others)


# ---- one arm ----------------------------------------------------------------------------------------------------


def pretrained_tower(arm: Arm, speech: Speech, work: Path, steps: int) -> Path:
    """The folder of an arm's tower, pre-trained where that is not done yet."""
    folder = work / "towers" / f"{arm.name.replace(' ', '-')}-{steps}"
    if (folder / "done").is_file():
        return folder
    torch.manual_seed(0)
    encoder = {**NestConfig.encoder_settings("demo"), **NO_DROPOUT}
    model = NestForPreTraining(NestConfig(encoder_config=encoder, **TASK, **arm.config))
    if arm.pretrained:
        args = AudioPretrainingArguments(
            output_dir=str(folder), use_cpu=not torch.cuda.is_available(), max_steps=steps,
            max_batch_seconds=PRETRAINING_BATCH_SECONDS,
            learning_rate=1.5e-3, lr_scheduler_type="cosine", warmup_steps=max(1, steps // 20), weight_decay=0.01,
            max_grad_norm=1.0, save_steps=max(1, steps // 20), eval_strategy="no", logging_steps=max(1, steps // 40),
            disable_tqdm=True, report_to="none", dataloader_num_workers=1,
        )  # fmt: skip
        settings = ClipSettings(augmentation=arm.augmentation, max_seconds=30.0)
        clips = NestClips(speech.pretraining, model.config, settings)
        begin_at_frequencies(model, clips)
        trainer = PretrainingTrainer(model, args, clips, callbacks=[CodebookUsageCallback(), ThroughputCallback()])
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        (folder / "history.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")
    model.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def run(arm: Arm, seed: int, speech: Speech, work: Path, budget: Budget) -> dict[str, Any]:
    """Fine-tune a retriever and judge it."""
    steps = budget.steps
    tower = WHISPER if arm.name == "whisper" else str(pretrained_tower(arm, speech, work, budget.pretraining_steps))
    torch.manual_seed(seed)
    rate = 50.0 if arm.name == "whisper" else 12.5
    windows = {
        "sizes": sorted({max(1, round(seconds * rate)) for seconds in WINDOW_SECONDS}),
        "stride": max(1, round(STRIDE_SECONDS * rate)),
    }
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=tower, windows=windows, embedding_dim=384))
    if arm.name != "whisper":
        model.train_audio_tower()
    args = TermRetrievalArguments(
        output_dir=str(work / "runs" / f"{arm.name.replace(' ', '-')}-{seed}"), overwrite=True, max_steps=steps,
        per_device_train_batch_size=budget.batch, learning_rate=1.5e-3, lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10), weight_decay=0.05, seed=0, data_seed=seed, eval_strategy="no",
        save_strategy="no", patience=0, logging_steps=max(1, steps // 10), max_grad_norm=1.0, report_to="none",
        use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
    )  # fmt: skip
    trainer = TermRetrievalTrainer(model, args, speech.retriever)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"arm": arm.name, "seed": seed, "losses": losses, "ranks": judge(model, speech)}


def judge(model: TermRetrievalModel, speech: Speech) -> dict[str, list[int]]:
    """Ranks of what is said among the texts of its set and the distractors, alone and under a second voice."""
    others_ND = model.encode_terms(speech.distractors)
    ranks = {}
    for name, rows in speech.judged.items():
        said = rows["text"][:]
        own = list(dict.fromkeys(said))
        bank_ND = torch.cat([model.encode_terms(own), others_ND])
        gold = [[own.index(text)] for text in said]
        for heard, clips in ((name, [clip.pcm for clip in rows["audio"]]), (f"{name}, 0 dB", under_a_voice(rows))):
            audio = model.encode_audio(clips)
            ranks[heard] = rank_of_gold(audio.vectors, bank_ND, gold, window_mask=audio.mask).tolist()
    return ranks


def under_a_voice(rows: datasets.Dataset) -> list[np.ndarray]:
    """Each clip with another clip of the set over all of it, as loud as itself; the same each time."""
    nothing_else = dict.fromkeys(
        ("speed_prob", "silence_prob", "reverb_prob", "band_prob", "telephone_prob", "gain_prob"), 0.0
    )
    config = AugmentationConfig(noise_prob=1.0, speech_share=1.0, speech_snr_db=(0.0, 0.0), **nothing_else)
    reader = ClipReader(rows)
    planner, heard = DistortionPlanner(config, reader), []
    for visit in fixed_visits(len(reader), seed=0):
        (pcm,) = reader.views([visit.clip])
        ingredients = planner.render(pcm, planner.draw(visit.draw, visit.clip, len(pcm)))
        heard.append(distort(*pad_pcm([pcm]), collate_distortions([ingredients]))[0][0].numpy())
    return heard


# ---- the table --------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """Recall@10 of each arm, mean and range over seeds."""
    sets = list(results[0]["ranks"]) if results else []
    rows = []
    for arm in ARMS:
        found = [each for each in results if each["arm"] == arm.name]
        if found:
            recalls = [[float(np.mean(np.array(each["ranks"][name]) <= 10)) for each in found] for name in sets]
            cells = [f"{np.mean(each):.3f} ({min(each):.3f}–{max(each):.3f})" for each in recalls]
            rows.append([arm.name, arm.what, len(found), *cells])
    return markdown.table(["tower", "", "seeds", *sets], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    names = [arm.name for arm in ARMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--pretraining_steps", type=int, default=1600, help=f"of {PRETRAINING_BATCH_SECONDS} s, of each arm"
    )
    parser.add_argument("--steps", type=int, default=240, help="of the retriever")
    parser.add_argument("--batch", type=int, default=64, help="clips of a step of the retriever")
    parser.add_argument("--work", type=Path, default=Path("outputs/ablation"), help="packs, towers and results of runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    parser.add_argument("--quick", action="store_true", help="the demo corpus, a few steps")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    datasets.disable_progress_bars()
    torch.set_num_threads(options.threads)
    load: Callable[[Path], Speech] = real_speech
    if options.quick:
        load = demo_speech
        vars(options).update(pretraining_steps=4, steps=2, batch=8, seeds=options.seeds[:1])
    budget = Budget(options.pretraining_steps, options.steps, options.batch)
    results = options.work / budget.folder
    results.mkdir(parents=True, exist_ok=True)
    speech = None
    for seed in options.seeds:
        for arm in ARMS:
            path = results / f"{arm.name.replace(' ', '-')}-{seed}.json"
            if options.report or arm.name not in options.arms or path.is_file():
                continue
            speech = speech or load(options.work)
            path.write_text(json.dumps(run(arm, seed, speech, options.work, budget)) + "\n", encoding="utf-8")
            logger.info("%s, seed %d: done", arm.name, seed)
    found = {
        each.name: {"budget": Budget.of(each.name).told(), "runs": [json.loads(path.read_text()) for path in runs]}
        for each in sorted(options.work.glob("worth-*"))
        if (runs := sorted(each.glob("*.json")))
    }
    text = "\n".join(f"{of['budget']}\n\n{table(of['runs'])}" for of in found.values())
    print(text)
    path = options.results / "pretraining_worth.json"
    write_results(path, {"budgets": found}, packages=("torch", "transformers"))
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
