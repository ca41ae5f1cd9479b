"""Training for real: on the demo corpus, with Whisper's weights, in processes that come in twos."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from tests.doubles.tiny_trainer import tiny_model
from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.trainer import make_trainer

SCRIPT = ROOT / "tests/processes/trainer.py"


def run_training(output_dir, batch_size, *settings, ranks=1):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launcher, str(SCRIPT), str(output_dir), str(batch_size), *settings]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line) for line in (output_dir / "losses.txt").read_text().splitlines()]
    return load_file(output_dir / "trained.safetensors"), losses, recall_of(output_dir)


def recall_of(output_dir):
    metrics = json.loads((output_dir / "eval_results.json").read_text())
    return {name: value for name, value in metrics.items() if "recall" in name or "mrr" in name or "pairs" in name}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return run_training(tmp_path_factory.mktemp("one"), 32)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(one_rank, tmp_path):
    weights, losses, recall = run_training(tmp_path, 16, ranks=2)
    assert largest_difference(weights, one_rank[0]) < 1e-5
    assert losses == pytest.approx(one_rank[1], abs=1e-4)  # the Trainer rounds what it logs to four digits
    assert recall == one_rank[2]


@pytest.mark.slow
def test_gradient_accumulation_halves_the_loss_of_each_micro_batch(tmp_path):
    trainer = make_trainer(tmp_path, 16, gradient_accumulation_steps=2, max_steps=1)
    micro_batches = []
    trainer.compute_loss, plain = (lambda *args, **kwargs: record(plain(*args, **kwargs))), trainer.compute_loss

    def record(loss):
        micro_batches.append(loss.item())
        return loss

    trainer.train()
    (logged,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(micro_batches) == 2
    assert logged == pytest.approx(sum(micro_batches) / 2, abs=1e-4)


@pytest.mark.slow
def test_a_frozen_tower_never_runs_during_training_and_lora_does(tmp_path):
    trainer = make_trainer(tmp_path / "frozen", 16, max_steps=1)
    calls = []
    trainer.model.audio_tower.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert not calls

    trainer = make_trainer(tmp_path / "lora", 8, max_steps=2, lora_r=2, learning_rate=0.5)
    before = {name: p.detach().clone() for name, p in trainer.model.audio_tower.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.audio_tower.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    trainer.save_model()
    assert (tmp_path / "lora" / "model.safetensors").stat().st_size < 4e6


@pytest.mark.slow
def test_the_bias_of_the_sigmoid_loss_is_learned_saved_and_left_alone_by_infonce(tmp_path):
    trainer = make_trainer(tmp_path / "sigmoid", 16, max_steps=2, loss="sigmoid", learning_rate=1e-3)
    trainer.train()
    bias = trainer.model.logit_bias.item()
    assert bias != -10.0
    trainer.save_model()
    model = TermRetrievalModel.from_pretrained(tmp_path / "sigmoid")
    assert model.logit_bias.item() == bias
    rows = trainer.train_clips.rows.remove_columns(["text_id", "term_ids", "spoken_ids"])
    args = TermRetrievalArguments(
        output_dir=str(tmp_path / "infonce"), use_cpu=True, max_steps=1, per_device_train_batch_size=16,
        eval_strategy="no", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    TermRetrievalTrainer(model, args, rows).train()
    assert model.logit_bias.item() == bias


@pytest.mark.slow
def test_training_learns_and_keeps_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        32,
        max_steps=-1,
        num_train_epochs=12,
        learning_rate=3e-3,
        optim="adamw_torch",
        max_grad_norm=1.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        patience=4,
    )
    untrained = trainer.evaluate()
    trainer.train()
    history = [entry["eval_recall@10"] for entry in trainer.state.log_history if "eval_recall@10" in entry]
    assert max(history) > untrained["eval_recall@10"] + 0.1
    assert trainer.evaluate()["eval_recall@10"] == max(history) == trainer.state.best_metric
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2


@pytest.mark.slow
def test_a_resumed_run_still_knows_how_long_it_has_not_improved(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "patience": 3}
    # A learning rate of zero: nothing ever improves after the first evaluation.
    trainer = make_trainer(tmp_path, 16, max_steps=3, learning_rate=0.0, load_best_model_at_end=True, **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    resumed = make_trainer(tmp_path, 16, max_steps=20, learning_rate=0.0, load_best_model_at_end=True, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4


@pytest.mark.parametrize(
    "part", ["data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"]
)
def test_parts_that_the_trainer_would_pass_over_are_refused(tmp_path, part):
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=f"TermRetrievalTrainer takes no {part}: "):
        TermRetrievalTrainer(tiny_model(), args, **{part: len})


def test_clips_of_several_splits_are_refused_where_those_of_one_are_asked_for(tmp_path, demo_rows):
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=r"the rows of one split, not as a DatasetDict"):
        TermRetrievalTrainer(tiny_model(), args, demo_rows)
    with pytest.raises(TypeError, match=r"the rows of one split, not as a dict"):
        TermRetrievalTrainer(tiny_model(), args, demo_rows["test"].select(range(8)), {"near": demo_rows["validation"]})
