"""Counted operations against counts by hand: 2 · weights · frames for layers, 4 · hidden · frames² for attention.

The towers are small; what is trained is what the pass backward pays for: twice the pass forward for trained weights,
once for the gradients that only pass through.
"""

import pytest
import torch
from torch import nn
from transformers import BertConfig, Qwen3OmniMoeAudioEncoderConfig, WhisperConfig

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.training.flops import StepFlops, count_flops, listed_peak, peak_flops, tower_flops

HIDDEN, FEED_FORWARD, LAYERS, MEL, DIMENSION = 32, 64, 3, 80, 16
WEIGHTS_A_LAYER = 4 * HIDDEN**2 + 2 * HIDDEN * FEED_FORWARD
# conv1 runs at twice the frame rate; the spectrogram's filters are a product, too.
ONCE_A_FRAME = 2 * (2 * 3 * MEL * HIDDEN) + 2 * 3 * HIDDEN**2 + 2 * (2 * 201 * MEL)
PHONEME_WEIGHTS, PHONEME_HIDDEN = 3 * 3 * 8**2, 8


def make_model(**settings):
    torch.manual_seed(0)
    whisper = WhisperConfig(
        d_model=HIDDEN, encoder_layers=LAYERS, encoder_attention_heads=2, encoder_ffn_dim=FEED_FORWARD,
        num_mel_bins=MEL, max_source_positions=400,
    )  # fmt: skip
    defaults = {
        "audio_tower": whisper.to_dict(),
        "text_tower": "phonemes:characters",
        "text_tower_config": {"hidden_size": PHONEME_HIDDEN},
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


def test_a_frozen_tower_costs_its_forward_pass_of_valid_frames():
    flops = tower_flops(make_model(), [16_000, 48_000, 4_321], backward=True)
    assert flops == pytest.approx(forward_by_hand([50, 150, 14]), rel=1e-9)


def test_a_trained_tower_costs_three_times_its_forward_pass_less_the_gradient_of_its_input():
    model = make_model()
    model.train_audio_tower()
    mel, conv1 = 2 * (2 * 201 * MEL), 2 * (2 * 3 * MEL * HIDDEN)
    backward = tower_flops(model, [32_000], backward=True) - tower_flops(model, [32_000], backward=False)
    assert backward == pytest.approx(2 * forward_by_hand([100]) - 100 * (2 * mel + conv1), rel=1e-9)


def test_lora_pays_for_gradients_that_pass_through_frozen_weights_but_not_for_those_of_the_weights():
    model = make_model()
    plain = tower_flops(model, [32_000], backward=False)
    model.add_lora(r=2)
    forward = tower_flops(model, [32_000], backward=False)
    adapters = sum(values.numel() for name, values in model.audio_tower.named_parameters() if "lora_" in name)
    assert forward == pytest.approx(plain + 2 * adapters * 100, rel=1e-9)
    backward = tower_flops(model, [32_000], backward=True) - forward
    attention, layers = 4 * HIDDEN * LAYERS * 100**2, 2 * LAYERS * WEIGHTS_A_LAYER * 100
    # What comes before the first adapters gets no gradient: the convolutions, and the first layer's projections of
    # its input, each of them with its adapter's first matrix.
    before = 2 * 3 * HIDDEN**2 * 100 + 2 * 3 * HIDDEN * 2 * 100
    assert backward == pytest.approx(2 * attention + layers + 2 * (forward - plain) - before, rel=1e-9)
