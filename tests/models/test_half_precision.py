"""bf16 and fp16 autocast: finite, near float32, and never in the loss.

accelerate has fp16 on GPUs alone and leaves a CPU at float32 without a word (1.15), though PyTorch's CPU autocast and
gradient scaler know it: the tests switch both on.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss
from tests.processes.trainer import make_trainer

HALF = [torch.bfloat16, torch.float16]
TERMS = {"enable_hard_neg": True, "hard_neg_k": 4, "no_term_weight": 0.5, "mixed": True}
TERMS["hard_negatives_of"] = lambda clip, step: [(7 * clip + place) % 40 for place in range(4)]
CASES = {
    "frozen cache": {},
    "frozen cache, all losses": TERMS,
    "frozen cache, all losses, GradCache": {**TERMS, "gradcache_chunk": 5},
    "sigmoid, soft windows": {**TERMS, "loss": "sigmoid", "window_reduction": "logsumexp"},
    "LoRA": {"lora_r": 2},
    "LoRA, GradCache, checkpointing": {"lora_r": 2, "gradcache_chunk": 2, "activation_checkpointing": True},
}


def train(folder, dtype, case, **settings):
    """Losses, norms of the gradients and weights of a short run, and whether the tower ran in `dtype`."""
    precision = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}}.get(dtype, {})
    batch_size = 4 if "LoRA" in case else 24
    trainer = make_trainer(
        folder, batch_size, check_memory=False,
        **{"max_steps": 2, "learning_rate": 1e-3, "max_grad_norm": 1.0, **CASES[case], **precision, **settings},
    )  # fmt: skip
    if dtype == torch.float16:
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    seen = []
    trainer.retrieval_model.audio_head.register_forward_hook(lambda head, inputs, output: seen.append(output.dtype))
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    weights = [values for values in trainer.model.parameters() if values.requires_grad]
    return [line["loss"] for line in steps], [line["grad_norm"] for line in steps], weights, set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(each, marks=[pytest.mark.long] * ("LoRA" in each)) for each in CASES])
def test_training_in_half_precision_is_finite_and_near_float32(tmp_path, case):
    losses, _, _, dtypes = train(tmp_path / "float32", torch.float32, case)
    assert dtypes == {torch.float32}
    for dtype in HALF:
        half_losses, norms, weights, dtypes = train(tmp_path / str(dtype), dtype, case)
        assert dtype in dtypes
        assert all(map(math.isfinite, norms))
        assert all(values.isfinite().all() for values in weights)
        # The first is on the same weights and the same batch.
        assert half_losses[0] == pytest.approx(losses[0], rel=0.02)
        assert half_losses[1] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
def test_embeddings_and_the_scalars_of_the_logits_leave_the_model_in_float32(tmp_path, dtype):
    trainer = make_trainer(tmp_path, 8, loss="sigmoid")
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.autocast("cpu", dtype=dtype):
        outputs = trainer.retrieval_model(**batch["model_inputs"])
    assert {values.dtype for values in outputs.values()} == {torch.float32}
    assert outputs.keys() == {"audio_PD", "text_ND", "logit_scale", "logit_bias"}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window_temperature", [None, 0.05])
def test_every_loss_is_computed_in_float32_whatever_autocast_says(dtype, window_temperature):
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(12, 16), dim=1).requires_grad_()
    terms = F.normalize(torch.randn(6, 16), dim=1).requires_grad_()
    windows_QW = torch.arange(12).view(6, 2)
    ids = torch.arange(6)
    queries = Queries(vectors, windows_QW, ids[:, None], torch.full((6, 1), -1))
    candidates, scale, bias = Candidates(terms, ids), torch.tensor(100.0), torch.tensor(-10.0)
    wrong_QK = torch.stack([(ids + 1) % 6, (ids + 2) % 6], 1)
    soft = {"window_temperature": window_temperature}
    losses = [
        lambda: contrastive_loss(queries, candidates, scale, **soft),
        lambda: sigmoid_loss(queries, candidates, scale, bias, **soft),
        lambda: no_term_loss(queries, candidates, scale, 0.2, **soft),
        lambda: hard_negative_loss(queries, candidates, candidates, wrong_QK, scale, **soft),
        lambda: hard_negative_loss(queries, candidates, candidates, wrong_QK, scale, bias, **soft),
    ]
    for loss_of in losses:
        expected = loss_of()
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of()
        assert loss.dtype == torch.float32
        assert loss.item() == expected.item()
        gradient, expected_gradient = (torch.autograd.grad(value, [vectors, terms]) for value in (loss, expected))
        assert all(map(torch.equal, gradient, expected_gradient))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradcache_chunk": 5}])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_nan_under_the_gradient_scaler_skips_its_step_and_no_other(tmp_path, settings, max_grad_norm):
    trainer = make_trainer(
        tmp_path, 16, fp16=True, check_memory=False, max_steps=3, learning_rate=1e-3, max_grad_norm=max_grad_norm,
        **settings,
    )  # fmt: skip
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plain, weights = trainer._loss_of, []

    def spoilt(*batch):
        weights.append(trainer.retrieval_model.audio_head.weight.detach().clone())
        return plain(*batch) * (torch.nan if trainer.state.global_step == 1 else 1)

    trainer._loss_of = spoilt
    trainer.train()
    assert [line["nonfinite_steps"] for line in trainer.state.log_history if "loss" in line] == [0, 1, 1]
    first, second, third = weights
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(third, trainer.retrieval_model.audio_head.weight)
    assert trainer.retrieval_model.audio_head.weight.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 through accelerate needs a GPU")
def test_fp16_on_a_gpu_is_finite_and_near_float32(tmp_path):
    losses = {}
    for name in ("float32", "fp16"):
        settings = {"fp16": name == "fp16", "use_cpu": False, "lora_r": 2, "max_steps": 2, "learning_rate": 1e-3}
        trainer = make_trainer(tmp_path / name, 8, **settings)
        trainer.train()
        losses[name] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses["fp16"][0] == pytest.approx(losses["float32"][0], rel=0.02)


@pytest.mark.slow
def test_a_model_that_was_trained_in_bf16_answers_in_its_own_precision(tmp_path):
    trainer = make_trainer(tmp_path, 8, bf16=True, max_steps=1)
    trainer.train()
    model, clip = trainer.retrieval_model, np.random.default_rng(0).integers(-9000, 9000, 16_000, dtype=np.int16)
    assert "forward" in vars(model), "accelerate no longer leaves its forward in the model: see embed_spans"
    after_training = model.encode_audio([clip]).vectors
    del model.forward
    assert torch.equal(after_training, model.encode_audio([clip]).vectors)
