"""The model: its loss by definition, batch normalisation by frames, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models.audio_towers.fast_conformer import FrameBatchNorm
from qwen_term_retrieval.pretraining.audio import NestConfig, NestForPreTraining
from qwen_term_retrieval.pretraining.audio.losses import MaskedTokenLoss
from tests.doubles.tiny_nest import demo_rows, tiny_nest


@pytest.fixture(scope="module")
def clips():
    return [row["audio"].pcm for row in demo_rows().select(range(4))]


def batch_of(model, clips, draws=None):
    pcm_BS, num_samples_B = pad_pcm(clips)
    mask = model.mask(num_samples_B, list(draws or range(len(clips))))
    return {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B, "noisy_pcm_BS": pcm_BS // 2 + 3, "mask": mask}


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_loss_is_the_mean_over_hidden_tokens_and_books(clips, where):
    model = tiny_nest(num_books=2, mask_position=where).eval()
    batch = batch_of(model, clips)
    output = model(**batch)
    log_probs = model.log_probs(output.frames_BTD)
    nll = [
        -log_probs[clip, token, output.tokens_BTH[clip, token, book], book]
        for clip, token in output.masked_BT.nonzero().tolist()
        for book in range(2)
    ]
    assert len(nll) == 2 * len(output.tokens_NH) > 20
    torch.testing.assert_close(output.loss, torch.stack(nll).mean())
    # What is hidden is not heard, and nothing else is learned.
    mel_BMF, num_mel_B = model.mel(batch["noisy_pcm_BS"], batch["num_samples_B"])
    if where == "before":
        other = torch.where(batch["mask"][..., None], torch.randn_like(mel_BMF), mel_BMF)
        frames_BTD, _ = model.encode(other, num_mel_B, batch["mask"])
        torch.testing.assert_close(frames_BTD, output.frames_BTD)


def test_targets_are_those_of_the_clean_clips_and_frames_those_of_the_noisy(clips):
    model = tiny_nest().eval()
    batch = batch_of(model, clips)
    noisy = torch.randint(-2000, 2000, batch["pcm_BS"].shape, dtype=torch.int16)
    both = model(**batch | {"noisy_pcm_BS": noisy})
    clean = model(**batch | {"noisy_pcm_BS": None})
    heard = model(noisy, batch["num_samples_B"], mask=batch["mask"])
    assert torch.equal(both.tokens_BTH, clean.tokens_BTH)
    torch.testing.assert_close(both.frames_BTD, heard.frames_BTD)
    assert not torch.equal(heard.tokens_BTH, clean.tokens_BTH)


def test_mel_frames_may_be_given_in_place_of_samples_clean_and_noisy(clips):
    model = tiny_nest().eval()
    batch = batch_of(model, clips)
    mel_BMF, num_mel_B = model.mel(batch["pcm_BS"], batch["num_samples_B"])
    noisy_BMF, _ = model.mel(batch["noisy_pcm_BS"], batch["num_samples_B"])
    inputs = {"mel_BMF": mel_BMF, "num_mel_B": num_mel_B, "noisy_mel_BMF": noisy_BMF, "mask": batch["mask"]}
    torch.testing.assert_close(model(**inputs).loss, model(**batch).loss)
    for wrong, message in (
        ({**batch, "mel_BMF": mel_BMF}, "either pcm_BS with num_samples_B, or mel_BMF"),
        ({"mask": batch["mask"]}, "either pcm_BS with num_samples_B, or mel_BMF"),
        ({**batch, "noisy_mel_BMF": noisy_BMF}, "either noisy_pcm_BS or noisy_mel_BMF, not both"),
        ({"pcm_BS": batch["pcm_BS"]}, "samples come without num_samples_B"),
        ({**inputs, "noisy_mel_BMF": noisy_BMF[:, :-9]}, "not as long as the clean ones"),
        ({**batch, "labels": torch.zeros(1)}, "labels are not taken: the targets are tokens of the clean speech"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**wrong)


def test_samples_of_the_caller_are_left_as_they_are(clips):
    model = tiny_nest().train()
    batch = batch_of(model, clips)
    before = {name: values.clone() for name, values in batch.items()}
    model(**batch)
    assert all(torch.equal(values, before[name]) for name, values in batch.items())


def test_where_nothing_is_hidden_the_loss_is_0_and_so_are_its_gradients(clips):
    model = tiny_nest().train()
    batch = batch_of(model, clips)
    output = model(**batch | {"mask": torch.zeros_like(batch["mask"])})
    assert output.loss.item() == 0
    output.loss.backward()
    gradients = [values.grad for values in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert model(**batch | {"mask": None}).loss is None


def test_a_step_divides_by_all_of_its_tokens():
    logits, tokens = torch.randn(6, 9, 2), torch.randint(9, (6, 2))
    loss = MaskedTokenLoss()
    parts = sum(loss(logits[part], tokens[part], num_tokens=6) for part in (slice(0, 1), slice(1, 6), slice(6, 6)))
    torch.testing.assert_close(parts, loss(logits, tokens))
    assert loss(logits.bfloat16(), tokens).dtype == torch.float32


@pytest.mark.parametrize("where", ["before", "after"])
def test_extra_padding_changes_nothing_in_training(clips, where):
    made = []
    for extra in (0, 400):
        model = tiny_nest(mask_position=where).train()
        batch = batch_of(model, clips)
        mel_BMF, num_mel_B = model.mel(batch["pcm_BS"], batch["num_samples_B"])
        noisy_BMF, _ = model.mel(batch["noisy_pcm_BS"], batch["num_samples_B"])
        mel_BMF, noisy_BMF = (F.pad(each, (0, 0, 0, extra)) for each in (mel_BMF, noisy_BMF))
        width = mel_BMF.shape[1] if where == "before" else -(-mel_BMF.shape[1] // 8)
        mask = F.pad(batch["mask"], (0, width - batch["mask"].shape[1]))
        output = model(mel_BMF=mel_BMF, num_mel_B=num_mel_B, noisy_mel_BMF=noisy_BMF, mask=mask)
        output.loss.backward()
        state = {name: values.grad for name, values in model.named_parameters()}
        made.append({"loss": output.loss, **state, **dict(model.named_buffers())})
    for name, values in made[0].items():
        torch.testing.assert_close(made[1][name], values, atol=1e-5, rtol=0, msg=name)


def test_batch_normalisation_by_frames_is_torchs_over_the_frames_of_clips():
    torch.manual_seed(0)
    own, torchs = FrameBatchNorm(5).double(), torch.nn.BatchNorm1d(5).double()
    hidden_BCT = (torch.randn(3, 5, 7).double() * 3 + 100).requires_grad_()
    valid_BT = torch.arange(7) < torch.tensor([[7], [4], [1]])
    weight = torch.randn(12, 5).double()
    own._valid_BT = valid_BT
    frames_NC = own(hidden_BCT).transpose(1, 2)[valid_BT]
    (gradient,) = torch.autograd.grad((frames_NC * weight).sum(), hidden_BCT)
    expected_NC = torchs(hidden_BCT.transpose(1, 2)[valid_BT])
    (expected,) = torch.autograd.grad((expected_NC * weight).sum(), hidden_BCT)
    torch.testing.assert_close(frames_NC, expected_NC)
    torch.testing.assert_close(gradient, expected)
    for name, values in torchs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], values, msg=name)
    own.eval(), torchs.eval()
    torch.testing.assert_close(own(hidden_BCT), torchs(hidden_BCT))


def test_statistics_that_are_not_finite_are_not_kept():
    norm = FrameBatchNorm(3)
    before = {name: values.clone() for name, values in norm.state_dict().items()}
    norm(torch.full((2, 3, 4), torch.nan))
    assert all(torch.equal(values, norm.state_dict()[name]) for name, values in before.items())


def test_checkpointing_counts_a_batch_once(clips):
    states = []
    for checkpointing in (False, True):
        model = tiny_nest().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch_of(model, clips)).loss.backward()
        gradients = {name: values.grad for name, values in model.named_parameters()}
        states.append({**gradients, **dict(model.named_buffers())})
    for name, values in states[0].items():
        torch.testing.assert_close(states[1][name], values, msg=name)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 60.0])
def test_clips_of_any_length_and_silence_give_finite_numbers(seconds):
    model = tiny_nest().train()
    length = round(seconds * 16_000)
    noise = torch.randint(-9000, 9000, (length,), dtype=torch.int16).numpy()
    batch = batch_of(model, [noise, noise * 0, noise[:3200] * 0])
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(values.grad.isfinite().all() for values in model.parameters())
    with pytest.raises(ValueError, match=r"clip 1 of the batch has 300 samples: 320 are two mel frames"):
        model(**batch_of(model, [noise, noise[:300]]))


def test_under_bf16_the_loss_is_float32_and_tokens_are_the_same(clips):
    model = tiny_nest().train()
    batch = batch_of(model, clips)
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert torch.equal(output.tokens_BTH, expected.tokens_BTH)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=0.05)


def test_a_model_begins_with_weights_that_let_depthwise_convolutions_through_and_loads_what_it_saves(tmp_path):
    model = NestForPreTraining(NestConfig(encoder_config={"hidden_size": 64, "num_attention_heads": 4}))
    layer = model.encoder.layers[0]
    assert layer.conv.depthwise_conv.weight.std().item() == pytest.approx(0.19, abs=0.02)
    assert not layer.self_attn.bias_u.any()
    assert model.config.encoder.layerdrop == 0
    model.save_pretrained(tmp_path)
    again = NestForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in model.state_dict().items())
    assert type(again.encoder.layers[0].conv.norm) is FrameBatchNorm


@pytest.mark.parametrize(("size", "millions"), [("S", 12.6), ("M", 26.1), ("L", 108.8), ("XL", 607.3)])
def test_sizes_are_those_that_are_known(size, millions):
    with torch.device("meta"):
        model = NestForPreTraining(NestConfig.of_size(size))
    assert sum(values.numel() for values in model.encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    with pytest.raises(ValueError, match="size must be one of demo, S, M, L, XL"):
        NestConfig.of_size("XS")
