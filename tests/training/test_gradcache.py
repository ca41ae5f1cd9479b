"""GradCache: the gradients of the whole batch with the graphs of a few clips."""

import dataclasses
import random

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ModelOutput

from qwen_term_retrieval.losses.objective import Embeddings, Objective
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.runs.checkpoints.random_state import RandomState
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.gradcache import gradcache_step, split_inputs
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from tests.doubles.tiny_trainer import TINY_TOWER
from tests.processes.trainer import make_trainer

NUM_CLIPS, NUM_TEXTS = 11, 5


@dataclasses.dataclass
class Outputs(ModelOutput):
    audio_PD: torch.Tensor | None = None
    text_ND: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None


class TwoTowers(nn.Module):
    """The smallest model with our forward, in float64: spans of a clip are shifted copies of its features."""

    def __init__(self, dropout=0.0, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.audio = nn.Linear(6, 8)
        self.audio_head = nn.Linear(8, 4)
        self.text = nn.Linear(3, 4)
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if bias else None
        self.numpy_noise = False
        self.most_clips = 0
        self.double()

    def forward(self, features_BH, clip_index_P, start_P, text_inputs):
        self.most_clips = max(self.most_clips, len(features_BH))
        hidden_BH = self.dropout(torch.tanh(self.audio(features_BH)))
        if self.numpy_noise:
            hidden_BH = hidden_BH * torch.from_numpy(np.random.rand(*hidden_BH.shape) + random.random())
        return Outputs(
            F.normalize(self.audio_head(hidden_BH)[clip_index_P] + start_P[:, None], dim=-1),
            F.normalize(self.text(self.dropout(text_inputs["letters"])), dim=-1),
            self.log_scale.exp(),
            self.logit_bias,
        )


def make_batch(num_texts=NUM_TEXTS):
    generator = torch.Generator().manual_seed(1)
    # Two spans a clip, not in the order of the clips.
    clip_index_P = torch.randperm(2 * NUM_CLIPS, generator=generator) % NUM_CLIPS
    rows_Q = torch.arange(NUM_CLIPS)
    positives = (rows_Q % num_texts)[:, None]
    none = torch.full((NUM_CLIPS, 1), -1)
    candidates = {"ids_N": torch.arange(num_texts), "rows_N": torch.arange(num_texts)}
    return {
        "model_inputs": {
            "features_BH": torch.randn(NUM_CLIPS, 6, generator=generator, dtype=torch.float64),
            "clip_index_P": clip_index_P,
            "start_P": torch.rand(2 * NUM_CLIPS, generator=generator, dtype=torch.float64),
            "text_inputs": {"letters": torch.randn(num_texts, 3, generator=generator, dtype=torch.float64)},
        },
        "text_queries": {"windows_QW": rows_Q[:, None], "positive_ids_QP": positives, "neutral_ids_QM": none},
        "term_queries": {
            "windows_QW": torch.stack([rows_Q, rows_Q + NUM_CLIPS], 1),
            "positive_ids_QP": positives,
            "neutral_ids_QM": none,
        },
        "text_candidates": candidates,
        "term_candidates": candidates,
    }


def whole_batch_step(model, batch, objective):
    outputs = model(**batch["model_inputs"])
    loss = objective(Embeddings(*[outputs.get(name) for name in Embeddings._fields]), batch)["loss"]
    loss.backward()
    return loss.detach()


def cached_step(model, batch, objective, chunk_size, **kwargs):
    return gradcache_step(
        model, batch["model_inputs"], lambda embeddings: objective(embeddings, batch)["loss"], chunk_size, **kwargs
    )


def gradients(model):
    found = {name: values.grad for name, values in model.named_parameters() if values.requires_grad}
    assert all(values is not None for values in found.values())
    model.zero_grad()
    return found


def assert_close(one, other, atol=1e-10):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("window_temperature", [None, 0.1])
@pytest.mark.parametrize("chunk_size", [1, 4, NUM_CLIPS])
def test_gradients_are_those_of_the_whole_batch(loss, window_temperature, chunk_size):
    model, batch = TwoTowers(bias=loss == "sigmoid"), make_batch()
    objective = Objective(loss, window_temperature=window_temperature)
    expected = whole_batch_step(model, batch, objective), gradients(model)
    model.most_clips = 0
    found = cached_step(model, batch, objective, chunk_size), gradients(model)
    assert model.most_clips == chunk_size
    assert found[0].item() == pytest.approx(expected[0].item(), abs=1e-12)
    assert_close(found[1], expected[1])


def test_every_chunk_holds_a_text_and_no_more_clips_than_asked_for():
    chunks = split_inputs(make_batch(num_texts=2)["model_inputs"], 3)
    assert [len(chunk.inputs["features_BH"]) for chunk in chunks] == [3, 3, 3, 2]
    assert [len(chunk.inputs["text_inputs"]["letters"]) for chunk in chunks] == [1, 1, 1, 1]
    assert [chunk.repeated_text for chunk in chunks] == [False, False, True, True]
    assert sorted(torch.cat([chunk.spans for chunk in chunks]).tolist()) == list(range(2 * NUM_CLIPS))


def test_fewer_texts_than_chunks_change_nothing():
    model, batch = TwoTowers(), make_batch(num_texts=2)
    whole_batch_step(model, batch, Objective())
    expected = gradients(model)
    cached_step(model, batch, Objective(), 2)
    assert_close(gradients(model), expected)


@pytest.mark.parametrize("numpy_noise", [False, True])
def test_dropout_drops_the_same_units_in_both_passes(numpy_noise):
    """The reference keeps the graphs of all chunks, embedded one after the other from the same random state."""
    model, batch = TwoTowers(dropout=0.4), make_batch()
    model.numpy_noise = numpy_noise
    state = RandomState.take(torch.device("cpu"))
    cached_step(model, batch, Objective(), 4)
    after_cached, found = torch.rand(3), gradients(model)

    state.put()
    chunks = split_inputs(batch["model_inputs"], 4)
    pieces = [model(**chunk.inputs) for chunk in chunks]
    order_P = torch.cat([chunk.spans for chunk in chunks]).argsort()
    audio_PD = torch.cat([piece.audio_PD for piece in pieces])[order_P]
    text_ND = torch.cat([piece.text_ND for piece in pieces])
    Objective()(Embeddings(audio_PD, text_ND, pieces[0].logit_scale), batch)["loss"].backward()
    assert_close(found, gradients(model))
    # The generator stands where one pass leaves it: a resumed run draws the same.
    assert torch.equal(after_cached, torch.rand(3))


def test_with_lora_only_the_adapters_and_heads_get_gradients():
    model, batch = TwoTowers(), make_batch()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["audio"], init_lora_weights=False), model)
    model.double().audio_head.requires_grad_(True)
    whole_batch_step(model, batch, Objective())
    expected = gradients(model)
    assert any("lora_A" in name for name in expected)
    assert not any("base_layer" in name for name in expected)
    cached_step(model, batch, Objective(), 4)
    assert_close(gradients(model), expected)


def test_a_gradient_scaler_scales_every_chunk_alike():
    model, batch = TwoTowers(), make_batch()
    whole_batch_step(model, batch, Objective())
    expected = gradients(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    cached_step(model, batch, Objective(), 4, backward=lambda product: scaler.scale(product).backward())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.unscale_(optimizer)
    assert_close(gradients(model), expected)


def test_gradients_are_exchanged_in_the_last_chunk_alone():
    events = []

    class NoSync:
        def __enter__(self):
            events.append("keep")

        def __exit__(self, *error):
            events.append("end")

    def backward(product):
        events.append("backward")
        product.backward()

    cached_step(TwoTowers(), make_batch(), Objective(), 4, backward=backward, no_sync=NoSync)
    assert events == ["keep", "backward", "end", "keep", "backward", "end", "backward"]


def test_an_input_that_cannot_be_cut_and_a_batch_without_text_are_refused():
    inputs = make_batch()["model_inputs"]
    with pytest.raises(ValueError, match="cannot cut the input 'offsets'"):
        split_inputs(inputs | {"offsets": torch.zeros(3)}, 4)
    with pytest.raises(ValueError, match="at least 1 clip"):
        split_inputs(inputs, 0)
    with pytest.raises(ValueError, match="holds no text"):
        split_inputs(inputs | {"text_inputs": {"letters": torch.zeros(0, 3)}}, 4)


# ---- in the trainer -------------------------------------------------------------------------------------------


def train(folder, **settings):
    """A short run; how many clips were in one forward pass at most, the weights, and the losses."""
    trainer = make_trainer(
        folder, None, mixed=True, dtype=torch.float64, **{"max_steps": 2, "learning_rate": 1e-3, **settings}
    )
    clips = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, inputs: clips.append(len(inputs["num_frames_B"])), with_kwargs=True
    )
    trainer.train()
    weights = {name: values.detach() for name, values in trainer.model.named_parameters() if values.requires_grad}
    return max(clips), weights, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), contrastive_batch_size=48)


@pytest.mark.slow
def test_a_contrastive_batch_needs_only_the_memory_of_its_chunks(whole_batches, tmp_path):
    assert whole_batches[0] == 48
    clips, weights, losses = train(tmp_path, contrastive_batch_size=48, gradcache_chunk=5)
    assert clips == 5
    assert losses == pytest.approx(whole_batches[2], abs=1e-5)
    assert_close(weights, whole_batches[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradcache_chunk": 7}])
def test_accumulation_is_the_mean_over_micro_batches_and_adds_no_negatives(whole_batches, tmp_path, settings):
    once = [train(tmp_path / "once", contrastive_batch_size=16, max_steps=1, **settings)]
    _, _, losses = train(tmp_path / "each", contrastive_batch_size=16, max_steps=2, learning_rate=0.0, **settings)
    _, _, (accumulated,) = train(
        tmp_path / "two", contrastive_batch_size=16, max_steps=1, gradient_accumulation_steps=2, **settings
    )
    assert losses[0] == pytest.approx(once[0][2][0], abs=1e-5)
    assert accumulated == pytest.approx(sum(losses) / 2, abs=1e-5)
    assert accumulated < whole_batches[2][0]


def step_of_8192_clips(folder, **settings):
    """One step of a tiny tower that is trained, on the demo's clips over and over.

    Returns:
        Clips of each forward pass, and the weights after and before.
    """
    torch.manual_seed(0)
    rows = datasets.load_dataset("builders/term_audio", split="train")
    rows = rows.filter(lambda duration: duration < 0.8, input_columns="duration")
    model = TermRetrievalModel(
        TermRetrievalConfig(
            audio_tower=TINY_TOWER,
            text_tower="phonemes:characters",
            text_tower_config={"hidden_size": 16, "dropout": 0.0},
            embedding_dim=16,
            segments=(1,),
        )
    )
    args = TermRetrievalArguments(
        output_dir=str(folder), contrastive_batch_size=8192, max_steps=1, learning_rate=1e-2, optim="sgd",
        max_grad_norm=0.0, use_cpu=True, eval_strategy="no", save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = TermRetrievalTrainer(model, args, rows.select([number % len(rows) for number in range(8192)]))
    sizes = []
    model.register_forward_pre_hook(lambda *call: sizes.append(len(call[2]["num_samples_B"])), with_kwargs=True)
    untrained = {name: values.detach().clone() for name, values in model.named_parameters()}
    trainer.train()
    return sizes, dict(model.named_parameters()), untrained


@pytest.mark.slow
@pytest.mark.long
def test_one_device_takes_a_step_of_8192_clips_in_chunks_of_64_as_it_would_at_once(tmp_path):
    at_once, expected, _ = step_of_8192_clips(tmp_path / "whole", check_memory=False)
    sizes, weights, before = step_of_8192_clips(tmp_path / "chunks", gradcache_chunk=64, check_memory=False)
    assert at_once == [8192]
    assert sizes == [64] * (2 * 8192 // 64)
    assert_close(weights, expected, atol=1e-6)
    assert weights["audio_head.weight"].sub(before["audio_head.weight"]).abs().max() > 1e-2
    assert weights["audio_tower.encoder.conv2.bias"].sub(before["audio_tower.encoder.conv2.bias"]).abs().max() > 1e-3


class Gradients(TrainerCallback):
    """The gradients that each optimizer step is taken on."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = model.named_parameters()
        self.steps.append({name: values.grad.clone() for name, values in named if values.grad is not None})


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradcache_chunk": 7}])
def test_accumulated_gradients_are_the_mean_of_those_of_the_micro_batches(tmp_path, settings):
    found = []
    for steps, accumulated in ((2, 1), (1, 2)):
        trainer = make_trainer(
            tmp_path, 16, max_steps=steps, gradient_accumulation_steps=accumulated, learning_rate=0.0, mixed=True,
            dtype=torch.float64,
            **settings,
        )  # fmt: skip
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        found.append(gradients.steps)
    (first, second), (together,) = found
    assert_close(together, {name: (first[name] + second[name]) / 2 for name in first}, atol=1e-5)
    assert max(values.abs().max() for values in together.values()) > 0.1


@pytest.mark.slow
def test_bf16_stays_finite_and_near_float32(whole_batches, tmp_path):
    _, weights, losses = train(tmp_path, contrastive_batch_size=48, gradcache_chunk=5, bf16=True)
    assert all(values.isfinite().all() for values in weights.values())
    assert losses == pytest.approx(whole_batches[2], rel=0.02)
