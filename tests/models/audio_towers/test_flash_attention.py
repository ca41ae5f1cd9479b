"""FlashAttention, on a machine without it: which towers are given to it, with which lengths, and which refuse it.

A plain attention stands where the kernel would be called, so what towers tell it is what they compute.
"""

import warnings

import pytest
import torch
from transformers import PreTrainedModel, modeling_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.attention_backend import attention_precision
from qwen_term_retrieval.models.text_towers.text_encoder import HFTextEncoder
from qwen_term_retrieval.refusals import is_refusal
from tests.doubles.tiny_towers import ALL, build

FLASH = "flash_attention_2"
WITHOUT = ("parakeet_encoder", "wav2vec2-bert")
WITH = sorted(set(ALL) - set(WITHOUT))


class Kernel:
    """What `flash_attention_forward` computes, from lengths or from the edges of packed sequences; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
        self.calls += 1
        if cu_seq_lens_q is not None:
            sequence_T = torch.bucketize(torch.arange(query.shape[2]), cu_seq_lens_q[1:], right=True)
            seen = sequence_T[:, None] == sequence_T
        else:
            assert attention_mask is None or attention_mask.dim() == 2  # the kernel takes lengths, not a table
            seen = None if attention_mask is None else attention_mask.bool()[:, None, None]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling
        ).transpose(1, 2), None


@pytest.fixture
def kernel(monkeypatch):
    """As if flash-attn were installed."""
    kernel = Kernel()
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_import_error", lambda *args, **kwargs: None)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, kernel)
    return kernel


def config_of(kind):
    return TermRetrievalConfig(
        audio_tower=ALL[kind] | {"model_type": kind}, text_tower="phonemes:characters", attn_implementation=FLASH
    )


@pytest.mark.parametrize("kind", WITH)
def test_flash_attention_hears_each_clip_to_its_own_end(kernel, kind, say):
    speech = say("the heart of the patient in room seven and the lung of the patient in room nine")
    clips = pad_pcm([speech[2000 : 2000 + length] for length in (6_000, 14_000, 33_000)])
    model = TermRetrievalModel(config_of(kind)).eval()
    tower = model.audio_tower
    assert tower.encoder.config._attn_implementation == FLASH
    tower.encoder.load_state_dict(build(kind).encoder.state_dict())
    with torch.no_grad():
        features, num_frames = tower(*clips)
        assert kernel.calls == tower.num_layers
        expected, _ = build(kind).eval()(*clips)
    for row, frames in enumerate(num_frames.tolist()):
        torch.testing.assert_close(features[row, :frames], expected[row, :frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_tower_without_flash_attention_is_refused_in_one_line(kernel, kind):
    with pytest.raises(ValueError, match=r"'flash_attention_2': \w+(Encoder|BertModel) does not run") as refused:
        TermRetrievalModel(config_of(kind))
    assert is_refusal(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(is_flash_attn_2_available() or is_kernels_available(), reason="FlashAttention is there")
def test_flash_attention_that_is_not_installed_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"attn_implementation 'flash_attention_2': .* take sdpa or eager") as refused:
        TermRetrievalModel(config_of("whisper"))
    assert is_refusal(refused.value)
    assert "\n" not in str(refused.value)


def test_a_text_encoder_reads_each_text_to_its_own_end(kernel):
    texts = ["sepsis", "chronic obstructive pulmonary disease"]
    found = []
    for attention in (FLASH, None):
        tower = HFTextEncoder("sentence-transformers/all-MiniLM-L6-v2", {}, attention)
        tower.encoder.load_state_dict(tower.base_tensors())
        with torch.no_grad():
            found.append(tower.eval()(**tower.tokenize(texts)))
    assert kernel.calls == tower.encoder.config.num_hidden_layers
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_weights_in_float32_meet_flash_attention_in_bfloat16():
    gpu = torch.device("cuda")
    with warnings.catch_warnings(action="ignore"):  # where there is no GPU
        context = attention_precision(FLASH, gpu, torch.float32)
    assert isinstance(context, torch.autocast)
    assert (context.device, context.fast_dtype) == ("cuda", torch.bfloat16)
    for implementation, device, dtype in (
        ("sdpa", gpu, torch.float32),
        (None, gpu, torch.float32),
        (FLASH, gpu, torch.bfloat16),
        (FLASH, torch.device("cpu"), torch.float32),
    ):
        assert not isinstance(attention_precision(implementation, device, dtype), torch.autocast)
