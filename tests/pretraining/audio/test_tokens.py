"""Tokens and masks against their definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.masking import BlockMask
from qwen_term_retrieval.pretraining.audio.quantizer import RandomProjectionQuantizer

MEL_BMF = torch.randn(3, 85, 80, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalized", [False, True], ids=["plain", "normalised"])
def test_a_token_is_the_nearest_code_of_each_book(normalized):
    quantizer = RandomProjectionQuantizer(NestConfig(num_books=3, num_codes=512, normalize_input=normalized))
    tokens_BTH = quantizer(MEL_BMF)
    assert tokens_BTH.shape == (3, 11, 3)
    windows_BTV = F.pad(MEL_BMF, (0, 0, 0, 3)).reshape(3, 11, 640).double()
    if normalized:
        windows_BTV = F.layer_norm(windows_BTV, (640,))
    projected_BTHK = (windows_BTV @ quantizer.projection.double().T).reshape(3, 11, 3, 16)
    for book in range(3):
        distance_BTC = torch.cdist(
            F.normalize(projected_BTHK[:, :, book], dim=-1), quantizer.codes_HCK[book].double().expand(3, -1, -1)
        )
        assert torch.equal(tokens_BTH[..., book], distance_BTC.argmin(-1))


def test_no_token_changes_under_autocast_and_in_a_model_of_half_precision():
    quantizer = RandomProjectionQuantizer(NestConfig())
    expected = quantizer(MEL_BMF)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(MEL_BMF), expected)


def test_codes_are_of_unit_norm_are_never_trained_and_follow_from_their_seed():
    one, same, other = (RandomProjectionQuantizer(NestConfig(quantizer_seed=seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one.codes_HCK.norm(dim=-1), torch.ones(1, 8192))
    assert one.projection.std().item() == pytest.approx((2 / 656) ** 0.5, rel=0.02)  # xavier
    assert list(one.parameters()) == []
    assert one.state_dict().keys() == {"projection", "codes_HCK"}
    assert torch.equal(one.projection, same.projection)
    assert not torch.equal(one.projection, other.projection)


def test_blocks_begin_where_chance_has_it_and_never_reach_past_the_end():
    mask, draws = BlockMask.of(NestConfig(min_blocks=0)), 4000
    for length in (41, 60, 100, 300):
        hidden_BM = mask([length] * draws, range(draws)).numpy()
        assert hidden_BM.shape == (draws, length)
        rate_M = mask.rate(length)
        error_M = np.sqrt(rate_M * (1 - rate_M) / draws)
        assert (np.abs(hidden_BM.mean(0) - rate_M) <= 4 * error_M + 1e-12).all()
        free = 0.99 ** (length - 40)
        share = 1 - hidden_BM.any(1).mean()
        assert abs(share - free) <= 4 * np.sqrt(free * (1 - free) / draws)
    assert mask.rate(300)[150] == pytest.approx(1 - 0.99**40)  # .331


@pytest.mark.parametrize("min_blocks", [0, 1, 2])
def test_a_block_is_whole_and_its_clip_is_longer(min_blocks):
    mask = BlockMask.of(NestConfig(min_blocks=min_blocks, mask_probability=0.02))
    lengths = [*range(1, 130), *range(1, 130)]
    for row, length in enumerate(lengths):
        hidden_M = mask(lengths, range(len(lengths)))[row].numpy().astype(int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden_M, [0]])))
        runs = edges[1::2] - edges[::2]
        assert (runs >= 40).all()
        assert not hidden_M[length:].any()
        if length <= 40:
            assert not hidden_M.any()
        elif min_blocks:
            assert len(runs) >= 1
        if length > 60:
            break  # one of each length is enough
    hidden_BM = mask([100] * 200, range(200))
    assert (hidden_BM.any(1).all()) == (min_blocks > 0)


def test_what_is_hidden_of_a_clip_follows_from_its_draw_alone():
    mask = BlockMask.of(NestConfig())
    alone = mask([150], [7])[0]
    beside = mask([90, 150, 400], [3, 7, 9])
    assert torch.equal(beside[1, :150], alone)
    assert not torch.equal(mask([150], [8])[0], alone)


def test_a_token_is_hidden_where_more_than_four_fifths_of_its_frames_are():
    mask = BlockMask.of(NestConfig())
    frames_1M = torch.zeros(1, 29, dtype=torch.bool)
    frames_1M[0, 2:16] = True  # 6 of 8, and 8
    frames_1M[0, 17:24] = True  # 7 of 8
    frames_1M[0, 24:29] = True  # 5, of a window that has 5
    assert mask.tokens(frames_1M).tolist() == [[False, True, True, False]]
    hidden = mask([100] * 100, range(100))
    assert (mask.tokens(hidden).sum(1) >= 4).all()  # any block holds four whole tokens


def test_after_the_subsampling_as_much_is_hidden_as_before():
    before, after = (BlockMask.of(NestConfig(min_blocks=0, mask_position=where)) for where in ("before", "after"))
    assert (after.block, after.window) == (5, 1)
    assert after.rate(100)[50] == pytest.approx(before.rate(800)[400])
    hidden_BT = after([100] * 2000, range(2000))
    assert torch.equal(after.tokens(hidden_BT), hidden_BT)
    assert hidden_BT[:, 50].float().mean().item() == pytest.approx(0.331, abs=4 * (0.331 * 0.669 / 2000) ** 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_position": "after", "block_frames": 42}, r"block_frames 42 is no multiple of the 8 .*use 48"),
        ({"block_frames": 9}, r"a block of 9 mel frames may mask no whole token of 8: use block_frames 14"),
        ({"encoder_config": {"num_mel_bins": 84}}, r"num_mel_bins 84 does not divide by the subsampling factor 8"),
        ({"encoder_config": {"hidden_size": 30, "num_attention_heads": 4}}, r"hidden_size 30 does not divide"),
        ({"mask_probability": 1.5}, r"mask_probability must lie in \[0, 1\]"),
        ({"mask_position": "within"}, r"mask_position must be one of before, after"),
        ({"min_blocks": -1}, r"min_blocks must not be negative"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        NestConfig(**settings)
