"""A small real training run in a process of its own, for tests that give it two ranks.

torchrun --nproc_per_node 2 tests/processes/trainer.py OUTPUT_DIR BATCH_PER_RANK [name=value …]
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
from safetensors.torch import save_file

import qwen_term_retrieval  # noqa: F401  registers the feature and the builder
from qwen_term_retrieval.distributed import end_ranks
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer


def make_trainer(
    output_dir,
    batch_size,
    *,
    lora_r=0,
    mixed=False,
    hard_negatives_of=None,
    dtype=torch.float32,
    dropout=0.0,
    aliases=False,
    lonely=False,
    **settings,
):
    """A trainer on a hundred clips of the demo corpus.

    mixed: every third clip's term spans are unknown, and one clip in six holds no term.
    aliases: every other clip says its terms under another spelling; the glossary knows it.
    lonely: one clip holds a term, the others neither term nor text.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = datasets.load_dataset("builders/term_audio")
    model = TermRetrievalModel(
        TermRetrievalConfig(
            audio_tower="openai/whisper-tiny.en",
            # Dropout draws differ between one process and two.
            text_tower_config={"hidden_size": 64, "dropout": dropout},
            embedding_dim=32,
            windows={"sizes": [30, 60, 100], "stride": 15},
            phoneme_head={"hidden_size": 32, "dropout": dropout} if settings.get("phoneme_loss_weight") else None,
        )
    )
    if lora_r:
        model.add_lora(r=lora_r, alpha=2 * lora_r, dropout=0.0)
    model.to(dtype)
    args = TermRetrievalArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        **{
            "use_cpu": True,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **settings,
        },
    )
    # Clips with terms in sentences first, so that spans, windows and no-term clips all take part.
    train = rows["train"].sort("kind").select(range(0, len(rows["train"]), len(rows["train"]) // 96))
    if mixed:
        without = rows["train"].filter(lambda kind: kind == "no_term", input_columns="kind")
        train = datasets.concatenate_datasets([train.select(range(80)), without.select(range(16))])
        train = train.map(_forget_some_spans, with_indices=True)
    glossary = None
    terms = sorted({term for row_terms in train["terms"] for term in row_terms})
    if aliases:
        glossary = Glossary([{"term": term, "aliases": [_alias(term)]} for term in terms])
        train = train.map(_say_aliases, with_indices=True)
    if lonely:
        glossary = Glossary(terms)
        train = train.map(_say_nothing, with_indices=True)
    return TermRetrievalTrainer(
        model, args, train, rows["validation"].select(range(41)), glossary, hard_negatives_of=hard_negatives_of
    )


def _alias(term):
    return f"{term} disease"


def _say_aliases(row, index):
    return {"terms": [_alias(term) for term in row["terms"]]} if index % 2 else {}


def _say_nothing(row, index):
    return {"text": "", "terms": [], "term_starts": [], "term_ends": []} if index else {}


def _forget_some_spans(row, index):
    if index % 3:
        return {}
    return {"term_starts": [None] * len(row["terms"]), "term_ends": [None] * len(row["terms"])}


def main(output_dir, batch_size, *settings):
    import yaml

    values = {name: yaml.safe_load(value) for name, value in (setting.split("=", 1) for setting in settings)}
    trainer = make_trainer(output_dir, int(batch_size), **values)
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        trained = {name: values.data for name, values in trainer.model.named_parameters() if values.requires_grad}
        save_file(trained, Path(output_dir) / "trained.safetensors")
        trainer.save_metrics("eval", metrics)
        (Path(output_dir) / "losses.txt").write_text(
            "\n".join(repr(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
