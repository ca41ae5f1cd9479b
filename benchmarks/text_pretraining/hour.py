"""One hour on two cores: a T5 on WordNet and GCIDE with the tokenizer that is trained here, beside the same on bytes.

    python -m benchmarks.text_pretraining.hour
    python -m benchmarks.text_pretraining.hour --minutes 3      # does it run?

Two trainings at once, one core each, as long as each other: model, batch and highest rate of the recipe `text_demo`
(falling with the root of the steps, since nobody knows how many there will be) on dictionary entries, once in the
tokens that `train_tokenizer` learns, once in bytes. Entries are those that neither
cuts, of at most 240 bytes; of every response, validation holds none that training has. Six times in the hour the clock
stops and 2,000 validation pairs are asked: bits a byte, which compare models of different tokens, beside those of the
tokens' frequencies in training (a unigram).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.markdown import table
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.pretraining.text.architectures import build_model
from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments, TextPretrainingArguments
from qwen_term_retrieval.pretraining.text.evaluation import evaluated_pairs
from qwen_term_retrieval.pretraining.text.preparation.corpora import dictionary_pairs
from qwen_term_retrieval.pretraining.text.preparation.parquet import PairWriter
from qwen_term_retrieval.pretraining.text.preparation.preparing import prepare_text
from qwen_term_retrieval.pretraining.text.run import open_prepared
from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs

# Tokens of each: the bytes and the special tokens alone learn no merges.
VOCABULARIES = {"tokens": 8192, "bytes": 259}
MOST_BYTES = 240
MODEL = {"hidden_size": 192, "intermediate_size": 512, "num_layers": 3, "num_heads": 6, "dropout": 0.0}
BATCH = 64
EVALUATIONS = 6
EVALUATED_PAIRS = 2000
_PAIRS_AT_ONCE = 4096


def short_entries() -> Iterator[tuple[str, str]]:
    for word, entry in dictionary_pairs():
        if max(len(word.encode()), len(entry.encode())) <= MOST_BYTES:
            yield word, entry


def prepare(work: Path) -> None:
    """The same split twice: in tokens and in bytes."""
    entries = work / "entries.parquet"
    if not entries.is_file():
        entries.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(entries) as file, PairWriter(file) as writer:
            for pair in short_entries():
                writer.write(*pair)
    for name, size in VOCABULARIES.items():
        if not (work / name).is_dir():
            prepare_text(str(entries), work / name, valid=0.05, vocab_size=size, max_seq_len=MOST_BYTES + 1, quiet=True)


class TimeBudget(TrainerCallback):
    """Evaluates at even times of a training's own clock, which stands still meanwhile, and ends it when that is up."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.spent = 0.0
        self.points: list[dict[str, float]] = []
        self._since = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        self.spent += now - self._since
        self._since = now
        control.should_evaluate = self.spent >= self.seconds * (len(self.points) + 1) / EVALUATIONS
        control.should_training_stop = self.spent >= self.seconds

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.points.append(
            {
                "minutes": self.spent / 60,
                "steps": state.global_step,
                "pairs": state.global_step * BATCH,
                "bits_per_byte": metrics["eval_bits_per_byte"],
                "perplexity": metrics["eval_perplexity"],
            }
        )
        print(json.dumps(self.points[-1]), flush=True)
        self._since = time.monotonic()


def train(work: Path, name: str, minutes: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    train_pairs, eval_pairs, tokenizer = open_prepared(work / name, MOST_BYTES + 1)
    out = work / f"run-{name}"
    args = TextPretrainingArguments(
        output_dir=str(out), overwrite=True, use_cpu=True, max_steps=1_000_000, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1, learning_rate=3e-3, lr_scheduler_type="inverse_sqrt", warmup_steps=100,
        weight_decay=0.01, max_seq_len=MOST_BYTES + 1, max_eval_pairs=EVALUATED_PAIRS, eval_strategy="no",
        save_strategy="no", logging_steps=100, num_generations=3, seed=0, report_to="none", disable_tqdm=True,
        check_memory=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(TextModelArguments(**MODEL), tokenizer)  # type: ignore[arg-type]
    budget = TimeBudget(60 * minutes)
    trainer = TextPretrainingTrainer(model, args, train_pairs, eval_pairs, tokenizer=tokenizer, callbacks=[budget])
    trainer.train()
    last = max((out / "generations").iterdir(), key=lambda path: int(path.stem.removeprefix("step-")))
    return {
        "vocabulary": len(tokenizer),
        "parameters": sum(values.numel() for values in model.parameters()),
        "training_pairs": len(train_pairs),
        "validation_pairs": len(evaluated_pairs(eval_pairs, EVALUATED_PAIRS)),
        "unigram_bits_per_byte": unigram_bits_per_byte(train_pairs, eval_pairs, tokenizer),
        "points": budget.points,
        "answers": json.loads(last.read_text(encoding="utf-8")),
    }


def unigram_bits_per_byte(train_pairs: MmapPairs, eval_pairs: MmapPairs, tokenizer: Any) -> float:
    """Of the responses that are evaluated, by the frequencies of all training responses' tokens, one added to each."""
    counts_V = np.ones(len(tokenizer))
    for ids in _responses(train_pairs, np.arange(len(train_pairs))):
        counts_V += np.bincount(ids, minlength=len(tokenizer))
    bits_V = -np.log2(counts_V / counts_V.sum())
    bits, num_bytes = 0.0, 0
    for ids in _responses(eval_pairs, evaluated_pairs(eval_pairs, EVALUATED_PAIRS)):
        bits += bits_V[ids].sum()
        num_bytes += len(tokenizer.decode(ids.tolist(), skip_special_tokens=True).encode())
    return bits / num_bytes


def _responses(pairs: MmapPairs, indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), _PAIRS_AT_ONCE):
        batch = pairs.batch(indices[start : start + _PAIRS_AT_ONCE])
        for ids, length in zip(batch.response_BT, batch.response_lengths_B, strict=True):
            yield ids[:length]


def both_at_once(work: Path, minutes: float) -> dict[str, Any]:
    """Each in a process of its own."""
    runs = {}
    for name in VOCABULARIES:
        with (work / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "benchmarks.text_pretraining.hour", "--work", str(work)]
            runs[name] = subprocess.Popen([*command, "--minutes", str(minutes), "--train", name], stdout=log)
    for name, run in runs.items():
        if run.wait():
            raise RuntimeError(f"the training on {name} ended with {run.returncode}: see {work / name}.log")
    return {name: json.loads((work / f"{name}.json").read_text(encoding="utf-8")) for name in VOCABULARIES}


def report(results: dict[str, Any]) -> str:
    found = {name: results[name] for name in VOCABULARIES}
    tokens = found["tokens"]
    lines = [
        "# One hour of text pre-training on two cores",
        "",
        f"Bits a byte of {tokens['validation_pairs']:,} validation responses; {tokens['training_pairs']:,} training "
        f"pairs of WordNet and GCIDE, entries of at most {MOST_BYTES} bytes; one core and {results['minutes']:g} "
        "minutes each, at the same time; one seed.",
        "",
    ]
    head = ["minutes", *(f"{name}: bits a byte, steps" for name in VOCABULARIES)]
    rows = [
        ["unigram", *(f"{each['unigram_bits_per_byte']:.3f}" for each in found.values())],
        *(
            [f"{points[0]['minutes']:.0f}", *(f"{point['bits_per_byte']:.3f}, {point['steps']:,}" for point in points)]
            for points in zip(*(each["points"] for each in found.values()), strict=True)
        ),
    ]
    lines += [table(head, rows), "", "What each answers at the end:", ""]
    for name, each in found.items():
        lines += [f"- {name}: *{_line(answer['prompt'])}*: {_line(answer['generated'])}" for answer in each["answers"]]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    """What a model wrote, on one line."""
    return textwrap.shorten("".join(each if each.isprintable() else " " for each in text), 100, placeholder=" …")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of training, each")
    parser.add_argument("--work", type=Path, default=Path("outputs/text_hour"), help="folder of data and runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--train", choices=VOCABULARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        found = train(options.work, options.train, options.minutes)
        (options.work / f"{options.train}.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        return
    prepare(options.work)
    results = {"minutes": options.minutes, **both_at_once(options.work, options.minutes)}
    path = options.results / "text_hour.json"
    write_results(path, results, packages=("torch", "transformers", "tokenizers"))
    path.with_suffix(".md").write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
