"""Counted operations against counts by hand: 2 · weights · frames for layers, 4 · hidden · frames² for attention.

The towers are small; what is trained is what the pass backward pays for: twice the pass forward for trained weights,
once for the gradients that only pass through.
"""

import pytest
import torch
from torch import nn
from transformers import WhisperConfig

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.flops import StepFlops, count_flops, listed_peak, peak_flops

HIDDEN, FEED_FORWARD, LAYERS, MEL, DIMENSION = 32, 64, 3, 80, 16
WEIGHTS_A_LAYER = 4 * HIDDEN**2 + 2 * HIDDEN * FEED_FORWARD
# conv1 runs at twice the frame rate; the spectrogram's filters are a product, too.
ONCE_A_FRAME = 2 * (2 * 3 * MEL * HIDDEN) + 2 * 3 * HIDDEN**2 + 2 * (2 * 201 * MEL)
SYMBOL_HIDDEN = 8
HEADS = {"audio": 7 * HIDDEN * DIMENSION, "text": 7 * SYMBOL_HIDDEN * DIMENSION}


def make_model(**settings):
    torch.manual_seed(0)
    whisper = WhisperConfig(
        d_model=HIDDEN, encoder_layers=LAYERS, encoder_attention_heads=2, encoder_ffn_dim=FEED_FORWARD,
        num_mel_bins=MEL, max_source_positions=400,
    )  # fmt: skip
    defaults = {
        "audio_tower": whisper.to_dict(),
        "text_tower": "phonemes:characters",
        "text_tower_config": {"hidden_size": SYMBOL_HIDDEN},
        "embedding_dim": DIMENSION,
    }
    model = TermRetrievalModel(TermRetrievalConfig(**{**defaults, **settings}))
    model.train_audio_tower(False)
    return model.train()


def forward_by_hand(frames):
    return sum(T * (2 * LAYERS * WEIGHTS_A_LAYER + ONCE_A_FRAME) + LAYERS * 4 * HIDDEN * T**2 for T in frames)


def test_an_encoder_layer_costs_twice_its_weights_a_frame_and_its_attention():
    layer = nn.TransformerEncoderLayer(HIDDEN, 4, FEED_FORWARD, batch_first=True, dropout=0.0)
    frames_1TH = torch.randn(1, 10, HIDDEN)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        forward = count_flops(lambda: layer(frames_1TH))
        both = count_flops(lambda: layer(frames_1TH), list(layer.parameters()))
    attention = 4 * HIDDEN * 10**2
    assert forward == 2 * WEIGHTS_A_LAYER * 10 + attention
    # The gradient with respect to the frames themselves, of the first product, nobody asks for.
    assert both == 3 * forward - 2 * 3 * HIDDEN**2 * 10
    assert all(values.grad is None for values in layer.parameters())


# ---- steps ----------------------------------------------------------------------------------------------------


def audio_inputs(num_samples, spans_a_clip=2):
    num_samples_B = torch.tensor(num_samples)
    clip_index_P = torch.arange(len(num_samples)).repeat_interleave(spans_a_clip)
    return {
        "pcm_BS": torch.zeros(len(num_samples), max(num_samples), dtype=torch.int16),
        "num_samples_B": num_samples_B,
        "clip_index_P": clip_index_P,
        "start_P": torch.zeros(len(clip_index_P)),
        "end_P": torch.ones(len(clip_index_P)),
    }


def step_of_two_seconds(model):
    return StepFlops(model)({**audio_inputs([32_000], spans_a_clip=1), "text_inputs": model.tokenize(["gout"])})


def test_a_trained_tower_costs_three_times_its_forward_pass_less_the_gradient_of_its_input():
    model = make_model()
    frozen = step_of_two_seconds(model)
    model.train_audio_tower()
    mel, conv1 = 2 * (2 * 201 * MEL), 2 * (2 * 3 * MEL * HIDDEN)
    tower = 2 * forward_by_hand([100]) - 100 * (2 * mel + conv1)
    through_the_head = 2 * HEADS["audio"]
    assert step_of_two_seconds(model) - frozen == pytest.approx(tower + through_the_head, rel=1e-9)


def test_lora_pays_for_gradients_that_pass_through_frozen_weights_but_not_for_those_of_the_weights():
    model = make_model()
    frozen = step_of_two_seconds(model)
    model.add_lora(r=2)
    adapters = sum(values.numel() for name, values in model.audio_tower.named_parameters() if "lora_" in name)
    attention, layers = 4 * HIDDEN * LAYERS * 100**2, 2 * LAYERS * WEIGHTS_A_LAYER * 100
    # What comes before the first adapters gets no gradient: the convolutions, and the first layer's projections of
    # its input, each of them with its adapter's first matrix.
    before = 2 * 3 * HIDDEN**2 * 100 + 2 * 3 * HIDDEN * 2 * 100
    tower = 3 * 2 * adapters * 100 + 2 * attention + layers - before
    through_the_head = 2 * HEADS["audio"]
    assert step_of_two_seconds(model) - frozen == pytest.approx(tower + through_the_head, rel=1e-9)


def text_by_hand(lengths):
    """Three convolutions of kernel 3, trained, and the head."""
    convolutions = 3 * 3 * 2 * 3 * SYMBOL_HIDDEN**2
    return sum(length * convolutions + 3 * 2 * HEADS["text"] for length in lengths)


def test_a_step_costs_its_valid_frames_spans_and_symbols():
    model = make_model()
    inputs = {**audio_inputs([16_000, 48_000, 4_321]), "text_inputs": model.tokenize(["sepsis", "gout", "arrhythmia"])}
    # A head on frozen frames has the gradient of its weights alone.
    by_hand = forward_by_hand([50, 150, 14]) + 6 * 2 * 2 * HEADS["audio"] + text_by_hand([6, 4, 10])
    assert StepFlops(model)(inputs) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("pooling", ["pyramid", "attention"])
def test_a_step_on_cached_frames_costs_what_stands_above_the_tower(pooling):
    model = make_model(pooling=pooling)
    num_frames_B = torch.tensor([50, 20])
    audio = {"frames_BTH": torch.zeros(2, 50, HIDDEN), "num_frames_B": num_frames_B}
    inputs = {**audio_inputs([1, 1]), **audio, "text_inputs": model.tokenize(["gout"])}
    head, scores = 4 * 4 * HEADS["audio"], 0
    if pooling == "attention":  # the gradient passes through the head to the scores of four heads and their norm
        head, scores = 6 * 4 * HEADS["audio"], 6 * 4 * HIDDEN * 70
    assert StepFlops(model)(inputs) == pytest.approx(head + scores + text_by_hand([4]), rel=1e-9)


def test_a_batch_without_padding_costs_what_the_counter_says_of_the_whole_batch():
    model = make_model()
    model.train_audio_tower()
    # As long as the tower takes: no frames behind the clip's own.
    inputs = {**audio_inputs([128_000] * 2), "text_inputs": model.tokenize(["gout", "gall", "mild"])}
    model.eval()
    model.audio_tower.encoder.set_attn_implementation("eager")

    def run():
        outputs = model(**inputs)
        return outputs.audio_PD.sum() + outputs.text_ND.sum()

    whole = count_flops(run, [values for values in model.parameters() if values.requires_grad])
    assert StepFlops(model)(inputs) == pytest.approx(whole, rel=1e-9)


def test_gradient_checkpointing_is_no_use_of_the_device():
    model = make_model()
    model.add_lora(r=2)
    inputs = {**audio_inputs([32_000]), "text_inputs": model.tokenize(["gout"])}
    plain = StepFlops(model)(inputs)
    model.activation_checkpointing_enable()
    assert StepFlops(model)(inputs) == plain


def test_texts_from_a_cache_cost_the_head_alone():
    model = make_model(text_tower="sentence-transformers/all-MiniLM-L6-v2", text_tower_config=None)
    model.train_text_tower(False)
    model.text_head.requires_grad_(True)
    read = {**audio_inputs([16_000]), "text_inputs": model.tokenize(["gout", "sepsis"])}
    model.cache_texts(["gout", "sepsis"])
    cached = {**audio_inputs([16_000]), "text_inputs": model.tokenize(["gout", "sepsis"])}
    flops = StepFlops(model)
    assert set(cached["text_inputs"]) == {"pooled_NH"}
    encoder = model.text_tower.encoder
    tokens_N = read["text_inputs"]["attention_mask"].sum(1)
    products = sum(layer.weight.numel() for layer in encoder.modules() if isinstance(layer, nn.Linear))
    attention = 4 * encoder.config.hidden_size * encoder.config.num_hidden_layers
    by_hand = 2 * products * int(tokens_N.sum()) + attention * int(tokens_N.square().sum())
    assert flops(read) - flops(cached) == pytest.approx(by_hand, rel=1e-9)


def test_sound_and_meaning_each_pay_for_their_own_tokens():
    model = make_model(
        text_tower="phonemes:characters + sentence-transformers/all-MiniLM-L6-v2", text_tower_config=None
    )
    flops = StepFlops(model)

    def cost(*texts):
        return flops({**audio_inputs([16_000]), "text_inputs": model.tokenize(texts)})

    # As many letters, and another number of tokens.
    tokens = [int(model.tokenize([text])["meaning_attention_mask"].sum()) for text in ("qqqq", "bone")]
    assert tokens[0] > tokens[1]
    assert cost("qqqq") > cost("bone")
    assert cost("qqqq", "bone") - cost("bone") == pytest.approx(cost("qqqq", "qqqq") - cost("qqqq"), rel=1e-6)


def test_counting_leaves_no_trace_in_the_model_or_the_random_state():
    model = make_model()
    model.add_lora(r=2, dropout=0.5)
    before, implementation = torch.get_rng_state(), model.audio_tower.encoder.config._attn_implementation
    StepFlops(model)({**audio_inputs([16_000]), "text_inputs": model.tokenize(["gout"])})
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert model.audio_tower.encoder.config._attn_implementation == implementation
    assert all(values.grad is None for values in model.parameters())


# ---- peaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756.5),
        ("NVIDIA H200", torch.bfloat16, False, 989.5),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156.0),
        ("NVIDIA A100-PCIE-40GB", torch.float32, False, 19.5),
        ("NVIDIA A10G", torch.float16, False, 70.0),
        ("NVIDIA L40S", torch.float16, False, 362.0),
        ("NVIDIA GeForce RTX 4090", torch.float32, False, 82.6),
        ("Tesla T4", torch.float16, False, 65.0),
        ("Tesla V100-SXM2-16GB", torch.float16, False, 125.0),
        ("Tesla V100-PCIE-16GB", torch.float16, False, 112.0),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_vendors(name, dtype, tf32, tera):
    assert listed_peak(name, dtype, tf32=tf32) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name", ["NVIDIA H20", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla P100"]
)
def test_another_gpu_has_no_listed_peak(name):
    assert listed_peak(name, torch.float16) is None
    assert listed_peak("Tesla T4", torch.bfloat16) is None


def test_the_peak_of_a_cpu_is_measured_once():
    peak = peak_flops("cpu", torch.float32)
    assert peak > 1e8
    assert peak_flops("cpu", torch.float32) == peak
