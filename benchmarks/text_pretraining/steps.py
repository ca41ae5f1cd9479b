"""Real tokens a second of whole training steps, beside the Trainer of transformers with random batches; on a GPU MFU.

The same T5 in both, from the same pairs, AdamW, no accumulation: with it, the peer's steps of a T5 are wrong
(`tests/pretraining/text/test_losses.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from benchmarks.text_pretraining.loaders import LENGTH, real_tokens, tokenized_dataset
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.pretraining.text.architectures import build_model
from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments, TextPretrainingArguments
from qwen_term_retrieval.pretraining.text.batches import Packed, SideBySide
from qwen_term_retrieval.pretraining.text.flops import step_flops
from qwen_term_retrieval.pretraining.text.losses import summed_loss
from qwen_term_retrieval.pretraining.text.run import open_prepared
from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
from qwen_term_retrieval.tokens.mmap_pairs import PairBatch

SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_layers": 3, "num_heads": 6}
WARMUP = 5


class Clock(TrainerCallback):
    """Seconds and tokens of all steps but the first few."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self.tokens = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append((time.perf_counter(), self.tokens))

    @property
    def tokens_per_second(self) -> float:
        (started, before), (ended, after) = self.seen[WARMUP], self.seen[-1]
        return (after - before) / (ended - started)


def measure_steps(prepared: Path, work: Path, num_steps: int, batch_size: int = 32) -> dict[str, Any]:
    pairs, _, tokenizer = open_prepared(prepared, LENGTH)
    common: dict[str, Any] = {
        "output_dir": str(work / "steps"), "per_device_train_batch_size": batch_size, "max_steps": num_steps,
        "gradient_accumulation_steps": 1, "save_strategy": "no", "eval_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(), "learning_rate": 1e-3, "warmup_steps": 0,
        "bf16": torch.cuda.is_available(), "logging_steps": num_steps,
    }  # fmt: skip
    clocks = {"transformers.Trainer, random batches": Clock(), "TextPretrainingTrainer": Clock()}
    theirs, own = clocks.values()
    torch.manual_seed(0)
    collate = DataCollatorForSeq2Seq(tokenizer)

    def counted(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        theirs.tokens += real_tokens(batch)
        return batch

    dataset = tokenized_dataset(pairs, work / "hf-tokenized")
    model = build_model(TextModelArguments(**SMALL), tokenizer)
    Trainer(
        model, TrainingArguments(**common), data_collator=counted, train_dataset=dataset, callbacks=[theirs]
    ).train()
    torch.manual_seed(0)
    args = TextPretrainingArguments(**common, max_seq_len=LENGTH, check_memory=False)
    model = build_model(TextModelArguments(**SMALL), tokenizer)
    trainer = TextPretrainingTrainer(model, args, pairs, tokenizer=tokenizer, callbacks=[own])
    plain = trainer.compute_loss

    def counted_loss(model: Any, inputs: Any, **settings: Any) -> Any:
        own.tokens += real_tokens(inputs)
        return plain(model, inputs, **settings)

    trainer.compute_loss = counted_loss  # type: ignore[method-assign]
    trainer.train()
    rates = {name: clock.tokens_per_second for name, clock in clocks.items()}
    return {"real_tokens_per_s": rates, "ratio": rates["TextPretrainingTrainer"] / next(iter(rates.values()))}


def measure_gpu(prepared: Path, seconds: float = 60.0) -> dict[str, Any]:
    """MFU and peak memory of steps of 32 pairs of 192 + 192 tokens, T5 and decoder at 768 × 10, in bfloat16."""
    if not torch.cuda.is_available():
        return {"skipped": "no GPU"}
    _, _, tokenizer = open_prepared(prepared, LENGTH)
    ids = torch.full((32, LENGTH), 300, dtype=torch.int32).numpy()
    lengths = torch.full((32,), LENGTH).numpy()
    batch = PairBatch(ids, lengths, ids, lengths)
    found = {}
    for name in ("t5", "qwen3"):
        model = build_model(TextModelArguments(architecture=name), tokenizer).cuda()
        inputs_of = SideBySide(0, 0) if name == "t5" else Packed(0, 2 * LENGTH)
        inputs = {key: values.cuda() for key, values in inputs_of(batch).items()}
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        torch.cuda.reset_peak_memory_stats()
        marks = []
        while not marks or (marks[-1] - marks[0] < seconds and len(marks) < 100):
            with torch.autocast("cuda", torch.bfloat16):
                loss = summed_loss(model, inputs) / lengths.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        step_s = (marks[-1] - marks[WARMUP]) / (len(marks) - 1 - WARMUP)
        found[name] = {
            "step_s": step_s,
            "mfu": step_flops(model, inputs) / step_s / peak_flops("cuda", torch.bfloat16),
            "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9,
        }
        del model, optimizer
    return found
