"""What the log says of speed, by a clock that moves only where a test moves it."""

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from qwen_term_retrieval.models.flops import StepFlops
from qwen_term_retrieval.runs import trainer as trainer_module
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback, throughput
from qwen_term_retrieval.training.data.collator import TermCollator
from tests.processes.trainer import make_trainer

BATCH = 8
# Seconds by the clock: to build a batch, to train on one, to mine after a step, to evaluate.
COLLATE, STEP, MINE, EVALUATE = 2.0, 6.0, 100.0, 1000.0
PEAK = 1e9


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def taking(self, seconds, function):
        def run(*args, **kwargs):
            result = function(*args, **kwargs)
            self.now += seconds
            return result

        return run


class Mining(TrainerCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_step_end(self, *args, **kwargs):
        self.clock.now += MINE


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(trainer_module, "time", clock)
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: PEAK)
    monkeypatch.setattr(TermCollator, "__call__", clock.taking(COLLATE, TermCollator.__call__))
    return clock


def make_timed(clock, folder, **settings):
    """A trainer by that clock, and the model inputs of the batches that it trains on."""
    trainer = make_trainer(folder, BATCH, **{"max_steps": 3, **settings})
    trainer.add_callback(Mining(clock))
    trainer.add_callback(ThroughputCallback())
    trained = []

    def training_step(model, inputs, *args, plain=trainer.training_step):
        trained.append(inputs["model_inputs"])
        return clock.taking(STEP, plain)(model, inputs, *args)

    trainer.training_step = training_step
    trainer.evaluation_loop = clock.taking(EVALUATE, trainer.evaluation_loop)
    return trainer, trained


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def audio_seconds(batches):
    return sum(float(batch["num_frames_B"].sum()) for batch in batches) / 50


def tokens(batches):
    return sum(int(batch["text_inputs"]["attention_mask"].sum()) for batch in batches)


def test_a_line_says_what_was_trained_on_and_how_long_it_took(clock, tmp_path):
    trainer, trained = make_timed(clock, tmp_path, eval_strategy="steps", eval_steps=1, load_best_model_at_end=False)
    trainer.train()
    flops = StepFlops(trainer.retrieval_model)
    for line, batch in zip(lines_of(trainer), trained, strict=True):
        seconds = COLLATE + STEP
        assert line["clips_per_second"] == pytest.approx(BATCH / seconds, rel=1e-4)
        assert line["audio_seconds_per_second"] == pytest.approx(audio_seconds([batch]) / seconds, rel=1e-4)
        assert line["tokens_per_second"] == pytest.approx(tokens([batch]) / seconds, rel=1e-4)
        assert line["data_wait_share"] == pytest.approx(COLLATE / seconds, rel=1e-4)
        assert line["mfu"] == pytest.approx(flops(batch) / seconds / PEAK, rel=1e-4)


def test_accumulated_batches_are_one_step(clock, tmp_path):
    trainer, trained = make_timed(clock, tmp_path, gradient_accumulation_steps=2, max_steps=2, logging_steps=2)
    trainer.train()
    (line,) = lines_of(trainer)
    seconds = 4 * (STEP + COLLATE)
    assert len(trained) == 4
    assert line["clips_per_second"] == pytest.approx(4 * BATCH / seconds, rel=1e-4)
    assert line["tokens_per_second"] == pytest.approx(tokens(trained) / seconds, rel=1e-4)
    assert line["data_wait_share"] == pytest.approx(4 * COLLATE / seconds, rel=1e-4)


@pytest.mark.parametrize("settings", [{"gradcache_chunk": 3}, {"gradcache_chunk": 3, "lora_r": 2}, {"lora_r": 2}])
def test_gradcache_counts_each_clip_once_and_its_second_pass_as_no_use(clock, tmp_path, settings):
    trainer, trained = make_timed(clock, tmp_path, max_steps=1, **settings)
    trainer.train()
    (line,) = lines_of(trainer)
    seconds = STEP + COLLATE
    assert line["clips_per_second"] == pytest.approx(BATCH / seconds, rel=1e-4)
    assert line["tokens_per_second"] == pytest.approx(tokens(trained) / seconds, rel=1e-4)
    assert line["mfu"] == pytest.approx(StepFlops(trainer.retrieval_model)(trained[0]) / seconds / PEAK, rel=1e-4)
    assert trainer.state.total_flos == StepFlops(trainer.retrieval_model)(trained[0])


def test_batches_by_seconds_count_the_clips_that_they_hold(clock, tmp_path):
    trainer, trained = make_timed(clock, tmp_path, max_batch_seconds=145.0, mixed=True, logging_steps=3, max_steps=3)
    trainer.train()
    (line,) = lines_of(trainer)
    clips = sum(len(batch["num_frames_B"]) for batch in trained)
    assert len({len(batch["num_frames_B"]) for batch in trained}) > 1
    ratio = line["audio_seconds_per_second"] / line["clips_per_second"]
    assert ratio == pytest.approx(audio_seconds(trained) / clips, rel=1e-4)


def test_a_resumed_run_counts_its_own_operations_and_the_run_all_of_them(clock, tmp_path):
    whole, trained = make_timed(clock, tmp_path / "whole")
    whole.train()
    killed, _ = make_timed(clock, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)
    killed.train()
    resumed, _ = make_timed(clock, tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.total_flos == whole.state.total_flos
    last = lines_of(resumed)[-1]
    assert last["step"] == 3
    flops = StepFlops(whole.retrieval_model)(trained[2])
    assert last["tflops_per_second"] * 1e12 / last["clips_per_second"] == pytest.approx(flops / BATCH, rel=1e-4)


def test_a_trainer_that_tells_of_no_waiting_shows_none():
    callback = ThroughputCallback()
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    state = TrainerState(logging_steps=1)
    ears = torch.nn.Linear(1, 1)
    ears.frame_rate = 50.0
    ears.forward = lambda num_samples_B=None: num_samples_B
    callback.on_train_begin(args, state, None, model=ears)
    callback.on_step_begin(args, state, None)
    ears(num_samples_B=torch.tensor([16_000, 8_000]))
    callback.on_optimizer_step(args, state, None)
    logs = {"loss": 1.0}
    callback.on_log(args, state, None, logs=logs, model=ears)
    assert set(logs) == {"loss", "clips_per_second", "audio_seconds_per_second"}
    assert logs["audio_seconds_per_second"] / logs["clips_per_second"] == pytest.approx(0.75, rel=1e-4)


def test_evaluation_and_what_follows_training_are_not_counted():
    callback = ThroughputCallback()
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    ears = torch.nn.Linear(1, 1)
    ears.forward = lambda num_samples_B=None: num_samples_B
    clips = {"num_samples_B": torch.tensor([16_000])}
    callback.on_train_begin(args, TrainerState(), None, model=ears)
    ears(**clips)
    with torch.no_grad():
        ears(**clips)
    ears.eval()
    ears(**clips)
    callback.on_train_end(args, TrainerState(), None)
    ears.train()
    ears(**clips)
    assert callback._clips == 1


@pytest.mark.parametrize("by", ["its settings", "accelerate launch"])
def test_a_run_in_bf16_is_measured_against_bf16(clock, tmp_path, monkeypatch, by):
    asked = []
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: asked.append(dtype) or PEAK)
    if by == "accelerate launch":  # --config_file configs/accelerate/one_gpu.yaml
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer, _ = make_timed(clock, tmp_path, max_steps=1, bf16=by == "its settings")
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert asked == [torch.bfloat16]
