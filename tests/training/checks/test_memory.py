"""The memory of a step, estimated before it from a few clips, against what the step then takes."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.runs import memory as memory_check
from qwen_term_retrieval.runs.memory import LiveMemory, NotEnoughMemoryError, peak_memory
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.checks import step_memory
from qwen_term_retrieval.training.checks.step_memory import check_memory
from tests.doubles.tiny_towers import ALL, WHISPER
from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.trainer import make_trainer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_tensors_are_counted_while_they_live_and_views_never():
    with LiveMemory() as live:
        numbers = torch.zeros(1000)
        view = numbers[:10].view(2, 5)
        assert (live.now, live.peak) == (4000, 4000)
        torch.zeros(500)
        assert (live.now, live.peak) == (4000, 6000)
        del numbers
        assert live.now == 4000
        del view
        assert live.now == 0


def test_what_autograd_keeps_and_the_gradients_of_the_backward_pass_are_counted():
    layer = nn.Linear(8, 8, bias=False)
    values = torch.randn(100, 8)
    with LiveMemory() as live:
        output = layer(values).tanh().square()
        kept = live.now
        output.backward(torch.ones_like(output))
    # The layer's output goes when tanh has read it; tanh's is kept, and the square's is ours.
    assert kept == 2 * 100 * 8 * 4
    assert live.peak > kept
    assert layer.weight.grad is not None


def test_any_size_lies_on_the_line_through_two():
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(4)])
    values = torch.randn(100, 16)

    def loss_of(size):
        return layers(values[:size]).sum()

    peak_of = peak_memory(layers, loss_of, 10)
    for weight in layers.parameters():
        weight.grad = torch.zeros_like(weight)
    with LiveMemory() as live:
        loss_of(100).backward()
    assert peak_of(100) == pytest.approx(live.peak, rel=0.02)


def peak_of_step(trainer):
    """What is estimated for the step over the longest clips, and the bytes of all tensors that it then makes."""
    found = {}
    plain = trainer.training_step

    def step(model, inputs, num_items_in_batch=None):
        clips = trainer.train_clips.durations.argsort()[::-1][: trainer.args.train_batch_size].tolist()
        batch = trainer.data_collator(trainer.train_clips.__getitems__([Visit(clip, draw=0) for clip in clips]))
        found["estimate"] = check_memory(trainer)
        with LiveMemory() as live:
            loss = plain(model, batch, num_items_in_batch)
        found["peak"] = live.peak
        return loss

    trainer.training_step = step
    trainer.train()
    parts = found["estimate"].parts
    there_before = parts["parameters"] + parts["optimizer"] + parts["batches of audio"]
    return found["estimate"].total - there_before, found["peak"]


CASES = {
    "frozen": {},
    "frozen, windows and negatives": {
        "mixed": True, "no_term_weight": 0.5, "enable_hard_neg": True, "hard_neg_k": 4,
        "hard_negatives_of": lambda clip, step: [(7 * clip + place) % 40 for place in range(4)],
    },
    "frozen, chunks": {"gradcache_chunk": 8, "bank_negatives": 20},
    "lora": {"lora_r": 2},
    "lora, bf16": {"lora_r": 2, "bf16": True},
    "lora, checkpointing": {"lora_r": 2, "activation_checkpointing": True},
    "lora, chunks, checkpointing": {"lora_r": 2, "gradcache_chunk": 4, "activation_checkpointing": True},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.long] * ("bf16" in each)) for each in CASES])
def test_the_estimate_is_near_to_what_the_step_takes(tmp_path, name):
    batch = 4 if "bf16" in name else 8 if "lora" in name else 64  # slow where a processor has no bf16
    trainer = make_trainer(tmp_path, batch, max_steps=1, check_memory=False, **CASES[name])
    estimated, peak = peak_of_step(trainer)
    assert 0.95 * peak < estimated < 1.3 * peak


def silent_clips(num_clips):
    samples = torch.full((num_clips,), 48_000)
    samples[1::2] = 45_600
    return {"pcm_BS": torch.zeros(num_clips, 48_000, dtype=torch.int16), "num_samples_B": samples}


def measured_and_real_peak(model, loss_of, size, whole):
    estimated = peak_memory(model, loss_of, size)(whole)
    assert all(values.grad is None for values in model.parameters())
    model.train()
    with LiveMemory() as live:
        loss_of(whole).backward()
    return estimated, live.peak


@pytest.mark.parametrize("kind", ALL)
def test_every_audio_tower_is_measured_at_any_number_of_clips(kind):
    torch.manual_seed(0)
    config = TermRetrievalConfig(
        audio_tower={**ALL[kind], "model_type": kind}, text_tower="phonemes:characters", embedding_dim=16,
        lora={"r": 2}, segments=(1,),
    )  # fmt: skip
    model = TermRetrievalModel(config)
    estimated, peak = measured_and_real_peak(
        model, lambda num_clips: model(**silent_clips(num_clips)).audio_PD.sum(), 2, 10
    )
    assert 0.95 * peak < estimated < 1.3 * peak


@pytest.mark.parametrize("trained", [False, True])
def test_a_pretrained_text_encoder_is_measured_at_any_number_of_texts(trained):
    config = TermRetrievalConfig(
        audio_tower=WHISPER | {"model_type": "whisper"}, text_tower=MINILM, embedding_dim=16,
        text_lora={"r": 2} if trained else None,
    )  # fmt: skip
    model = TermRetrievalModel(config)
    texts = model.tokenize([f"chronic obstructive pulmonary disease number {number}" for number in range(41)])

    def loss_of(num_texts):
        return model.embed_texts(**{name: values[:num_texts] for name, values in texts.items()}).sum()

    estimated, peak = measured_and_real_peak(model, loss_of, 4, 41)
    assert 0.95 * peak < estimated < 1.3 * peak


@pytest.mark.slow
def test_a_budget_of_seconds_is_estimated_for_its_fullest_batches(tmp_path):
    trainer = make_trainer(tmp_path, None, max_batch_seconds=60.0)
    found = step_memory._largest_batches(trainer)
    long, many = found[0], found[-1]
    durations = trainer.train_clips.durations
    assert durations[long].max() == durations.max()
    assert len(many) >= len(long)
    assert len(many) * durations[many].max() <= 60.0


@pytest.mark.slow
def test_clips_are_as_long_as_augmentation_can_make_them(tmp_path):
    still = {"speed_prob": 0.0, "silence_prob": 0.0}
    for settings, seconds in (
        (still, 3.0),
        (still | {"speed_prob": 0.5, "speed": [0.75, 1.0]}, 4.0),
        (still | {"silence_prob": 0.5, "silence_seconds": [0.0, 0.5]}, 4.0),
    ):
        trainer = make_trainer(tmp_path, 8, lora_r=2, augmentation=settings)
        assert step_memory._at_most(3.0, trainer.train_clips.augmentation) == seconds
    assert step_memory._at_most(3.0, None) == 3.0


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "per_device_train_batch_size 4"),
        ({"contrastive_batch_size": 16}, "contrastive_batch_size 4"),
        ({"max_batch_seconds": 60.0}, "max_batch_seconds 15"),
    ],
)
def test_a_smaller_batch_is_named_by_the_setting_that_the_run_has_for_it(tmp_path, settings, remedy):
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert step_memory._batch_setting(args, 4, 4 / 16) == remedy


@pytest.mark.slow
def test_measuring_leaves_the_run_as_it_was(tmp_path):
    trainers = [
        make_trainer(tmp_path / name, 8, max_steps=2, lora_r=2, check_memory=check)
        for name, check in (("with", True), ("without", False))
    ]
    for trainer in trainers:
        trainer.train()
    one, other = (dict(trainer.model.named_parameters()) for trainer in trainers)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_with_what_would(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, 24, lora_r=2)
    steps = []
    trainer.training_step = lambda *batch: steps.append(batch)
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 150e6)
    with pytest.raises(NotEnoughMemoryError) as refused:
        trainer.train()
    message = str(refused.value)
    assert re.match(r"this run does not fit: a step over 24 clips needs about 0\.\d\d GB beside the model", message)
    for part in ("parameters", "gradients", "optimizer", "audio tower", "text tower", "heads", "loss"):
        assert part in message
    assert "activation_checkpointing would need 0." in message
    for setting in ("gradcache_chunk", "per_device_train_batch_size"):
        found = re.search(rf"{setting} (\d+) would need ([\d.]+) GB", message)
        assert found is not None
        assert int(found[1]) < 24
        assert float(found[2]) <= 0.15
    assert not steps
    assert not trainer.retrieval_model.is_activation_checkpointing


@pytest.mark.slow
def test_a_rank_that_lacks_memory_stops_all(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(ROOT / "tests/processes/memory.py")
    done = subprocess.run(
        [*command, script, str(tmp_path)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the memory of another rank" in (tmp_path / "refused-0").read_text()
    assert "this run does not fit: a step over 8 clips" in (tmp_path / "refused-1").read_text()


def test_a_container_may_take_what_its_limit_leaves(tmp_path):
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000000\ninactive_file 500000000\n")
    assert memory_check._left_in_cgroup(tmp_path) == 3e9
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_check._left_in_cgroup(tmp_path) == float("inf")
    assert memory_check._left_in_cgroup(tmp_path / "nowhere") == float("inf")
