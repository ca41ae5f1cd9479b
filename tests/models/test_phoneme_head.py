"""The phoneme head: sounds on the frames of any tower, the same whatever else is in the batch, saved with the model."""

import pytest
import torch

from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.models.audio_towers.tower import AUDIO_TOWERS
from qwen_term_retrieval.models.phoneme_head import PhonemeHead, best_path, sub_frames_at
from qwen_term_retrieval.text.alphabet import BLANK, Alphabet
from qwen_term_retrieval.text.phonetics import PhonemizerError
from tests.doubles.tiny_trainer import tiny_model

LETTERS = {"phonemizer": "characters"}


def small_head(**settings):
    torch.manual_seed(0)
    return PhonemeHead({**LETTERS, "hidden_size": 16, **settings}, frame_size=8, num_layers=1, frame_rate=50.0).eval()


@pytest.mark.parametrize("rate", sorted({50.0, 25.0, 13.0, 12.5}))
def test_every_rate_of_a_tower_gives_at_least_forty_sub_frames_a_second(rate):
    head = PhonemeHead(LETTERS, frame_size=8, num_layers=1, frame_rate=rate)
    assert 40 <= head.frame_rate <= 60
    second = round(rate)
    log_probs, lengths = head(torch.randn(2, second, 8), torch.tensor([second, second // 2]))
    assert lengths.tolist() == [second * sub_frames_at(rate), second // 2 * sub_frames_at(rate)]
    assert log_probs.shape == (2, lengths[0], head.alphabet.num_classes)


def test_a_slow_tower_learns_sounds_that_come_faster_than_its_frames():
    """Four sounds in two frames of 12.5 a second: without sub-frames CTC has no place for them."""
    torch.manual_seed(0)
    head = PhonemeHead({**LETTERS, "dropout": 0.0}, frame_size=8, num_layers=1, frame_rate=12.5)
    (said,) = Alphabet("characters").pronunciations(["noon"])
    frames, phonemes = torch.randn(1, 2, 8), torch.tensor(said[0]).long()[None]
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(80):
        log_probs, lengths = head(frames, torch.tensor([2]))
        loss = head.nll(log_probs, lengths, phonemes, torch.tensor([4])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert head.alphabet.spell(best_path(log_probs[0])) == list("noon")


def test_what_is_heard_in_a_clip_does_not_depend_on_its_batch_mates():
    head, frames = small_head(), torch.randn(3, 20, 8)
    together, lengths = head(frames, torch.tensor([20, 7, 13]))
    for clip, length in enumerate(lengths.tolist()):
        alone, _ = head(frames[clip : clip + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[clip, :length], alone[0])


def test_unknown_text_and_text_that_is_too_long_for_its_clip_cost_nothing():
    head = small_head()
    log_probs, lengths = head(torch.randn(3, 4, 8), torch.tensor([4, 4, 4]))
    phonemes = torch.tensor([[1, 2, 3, 4, 5, 6], [0] * 6, [3, 0, 0, 0, 0, 0]])
    nll = head.nll(log_probs, lengths, phonemes, torch.tensor([6, 0, 1]))
    assert nll[:2].tolist() == [0, 0]
    assert 0 < nll[2] < torch.inf


def test_a_class_is_a_symbol_and_the_first_is_the_blank():
    alphabet = Alphabet("characters")
    (ways,) = alphabet.pronunciations(["ox"])
    assert alphabet.spell(ways[0]) == ["o", "x"]
    assert BLANK not in ways[0]
    assert alphabet.num_classes == len(alphabet.symbols) + 1


def test_a_text_without_sounds_has_no_pronunciation():
    assert Alphabet("characters").pronunciations(["…", "a"])[0] == []


def test_an_alphabet_of_another_phonemizer_is_refused_by_name():
    with pytest.raises(PhonemizerError, match="phoneme head was trained with"):
        Alphabet("characters", fingerprint="0123456789abcdef")


@pytest.mark.parametrize("settings", [{"width": 3}, {"phonemizer": "none-such"}])
def test_a_setting_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match=r"width|none-such"):
        small_head(**settings)


def test_a_model_is_saved_with_its_head_and_hears_the_same(tmp_path):
    model = tiny_model(audio_layers=1)
    model.add_phoneme_head()
    model.eval()
    inputs = {
        "pcm_BS": torch.randint(-9999, 9999, (2, 16000), dtype=torch.int16),
        "num_samples_B": torch.tensor([16000, 9000]),
    }
    before = model.embed_windows(inputs, torch.tensor([50, 28]), with_phonemes=True)
    model.save_pretrained(tmp_path / "model")
    loaded = TermRetrievalModel.from_pretrained(tmp_path / "model")
    after = loaded.embed_windows(inputs, torch.tensor([50, 28]), with_phonemes=True)
    assert before.log_probs.shape[-1] == model.phoneme_head.alphabet.num_classes
    torch.testing.assert_close(after.log_probs, before.log_probs)
    assert loaded.config.phoneme_head == model.config.phoneme_head


def test_the_head_pronounces_as_the_text_tower_does():
    model = tiny_model()
    model.add_phoneme_head()
    assert model.phoneme_head.config.phonemizer == "characters"
    assert model.phoneme_head.alphabet.symbols == tuple(model.text_tower.config.symbols)


def test_a_model_without_a_head_is_saved_and_asked_as_before(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = TermRetrievalModel.from_pretrained(tmp_path / "model")
    pcm = {"pcm_BS": torch.zeros(1, 16000, dtype=torch.int16), "num_samples_B": torch.tensor([16000])}
    assert loaded.phoneme_head is None
    assert loaded.embed_windows(pcm, torch.tensor([50]), with_phonemes=True).log_probs is None


def test_every_registered_tower_is_fast_enough_for_sounds_with_its_sub_frames():
    rates = {
        name: tower.frame_rate for name, tower in AUDIO_TOWERS.items() if isinstance(tower.frame_rate, float | int)
    }
    assert rates
    assert all(rate * sub_frames_at(rate) >= 40 for rate in rates.values()), rates


def test_the_head_is_small():
    head = PhonemeHead({"phonemizer": "espeak:en-us"}, frame_size=2048, num_layers=4, frame_rate=13.0)
    assert sum(values.numel() for values in head.parameters()) <= 3_000_000
