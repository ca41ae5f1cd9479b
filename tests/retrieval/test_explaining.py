"""Why a term is found: its sounds where it fits best, and what was heard there instead, in clips of any length."""

import numpy as np
import pytest
import torch

from qwen_term_retrieval.errors import BadAudioError, VerifierError
from qwen_term_retrieval.retrieval.encoding import ClipEncoder
from qwen_term_retrieval.retrieval.explaining import align_pronunciations, align_term, explain, hear_sounds
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from tests.doubles.tiny_trainer import tiny_model

SYMBOLS = ("s", "t", "i", "n")
RATE = 10.0
NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 16_000 * 20).astype(np.int16)


def hearing(frames):
    """Log-probabilities of a head that is sure of these symbols, `-` for silence, a frame each."""
    probs_UC = torch.full((len(frames), len(SYMBOLS) + 1), 0.01)
    probs_UC[:, 0] = 0.02
    for frame, symbol in enumerate(frames):
        probs_UC[frame, 1 + SYMBOLS.index(symbol) if symbol != "-" else 0] = 0.95
    return probs_UC.log()


def ways(*spellings):
    return [np.array([1 + SYMBOLS.index(symbol) for symbol in spelling], np.int16) for spelling in spellings]


def align(frames, *spellings):
    return align_pronunciations(hearing(frames), ways(*spellings), SYMBOLS, term="x", frame_rate=RATE)


@pytest.fixture(scope="module")
def model():
    model = tiny_model(windows={"sizes": [10, 20], "stride": 5})
    model.add_phoneme_head()
    return model.eval()


def test_a_term_that_is_said_fits_perfectly_where_it_is_said():
    alignment = align("n-ss-t-i---", "sti")
    assert alignment.fit == pytest.approx(0)
    assert [(each.symbol, each.start, each.end, each.heard) for each in alignment.sounds] == [
        ("s", pytest.approx(0.2), pytest.approx(0.4), ("s",)),
        ("t", pytest.approx(0.5), pytest.approx(0.6), ("t",)),
        ("i", pytest.approx(0.7), pytest.approx(0.8), ("i",)),
    ]
    assert (alignment.start, alignment.end) == (pytest.approx(0.2), pytest.approx(0.8))
    assert [each.symbol for each in alignment.heard] == ["n", "s", "t", "i"]


def test_the_sound_that_tells_a_twin_apart_is_the_worst_and_shows_what_was_heard():
    alignment = align("-s-t-i-", "sni")
    cost = np.log(0.01 / 0.95)
    assert alignment.fit == pytest.approx(cost, abs=1e-4)
    assert alignment.worst == alignment.sounds[1]
    assert (alignment.worst.symbol, alignment.worst.heard) == ("n", ("t",))
    assert alignment.worst.score == pytest.approx(cost, abs=1e-4)
    assert alignment.fit_per_sound == pytest.approx(cost / 3, abs=1e-4)


def test_what_is_heard_between_two_sounds_and_is_in_neither_is_told_with_what_it_costs():
    alignment = align("-s-ti-", "si")
    (extra,) = alignment.between
    assert [each.symbol for each in alignment.in_order] == ["s", "", "i"]
    assert alignment.worst == extra
    assert str(extra) == "+ t -3.9"
    assert (extra.symbol, extra.heard) == ("", ("t",))
    assert (extra.start, extra.end) == (pytest.approx(0.2), pytest.approx(0.4))
    assert extra.score == pytest.approx(np.log(0.02 / 0.95), abs=1e-4)
    assert align("-s-ti-", "sti").between == ()


def test_of_several_ways_to_say_a_term_the_one_that_was_said_counts():
    assert [each.symbol for each in align("-t-i-n-", "sin", "tin").sounds] == list("tin")


def test_a_clip_without_a_frame_for_each_sound_is_refused():
    with pytest.raises(BadAudioError, match=r"0\.20 s are too short to say 'x' in"):
        align("st", "stin")


def test_a_long_clip_is_heard_in_chunks_as_one_of_the_right_length(model):
    encoder = ClipEncoder(model)
    whole = hear_sounds(encoder, NOISE, sampling_rate=16_000)
    assert whole.shape == (20 * model.phoneme_head.frame_rate, model.phoneme_head.alphabet.num_classes)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(whole.exp().sum(dim=1), torch.ones(len(whole)))


def test_in_a_silent_stretch_nothing_is_heard(model):
    clip = NOISE.copy()
    clip[: 16_000 * 9] = 0
    heard = hear_sounds(ClipEncoder(model), clip, sampling_rate=16_000)
    assert heard[: 5 * 50].exp()[:, 0].tolist() == [1] * 250


def test_a_term_in_a_long_recording_is_aligned_in_the_chunk_where_it_fits_best(model):
    """The chunk that the tower hears alone, moved to its place."""
    recording = np.concatenate([NOISE, np.zeros(16_000 * 600, np.int16), NOISE[:16_000]])
    alignment = align_term(model, recording, "saxophone", sampling_rate=16_000)
    assert alignment.heard[-1].end - alignment.heard[0].start < 20
    assert 0 <= alignment.start < alignment.end <= 621
    parts = [align_term(model, part, "saxophone", sampling_rate=16_000) for part in (NOISE, NOISE[:16_000])]
    assert alignment.fit == pytest.approx(max(part.fit for part in parts), abs=1e-3)
    later = np.concatenate([np.zeros(16_000 * 600, np.int16), NOISE])
    moved = align_term(model, later, "saxophone", sampling_rate=16_000)
    assert [each.symbol for each in moved.sounds] == [each.symbol for each in parts[0].sounds]
    assert moved.start >= 600


def test_a_term_that_cannot_be_aligned_is_refused_by_name(model):
    with pytest.raises(VerifierError, match=r"no phoneme head.*--recipe phoneme_head"):
        align_term(tiny_model(), NOISE, "x", sampling_rate=16_000)
    with pytest.raises(VerifierError, match=r"'\?!' has no sound"):
        align_term(model, NOISE, "?!", sampling_rate=16_000)
    with pytest.raises(BadAudioError, match="too short to hear a term in"):
        align_term(model, NOISE[:300], "x", sampling_rate=16_000)
    with pytest.raises(BadAudioError, match=r"the clip: 0\.08 s are too short to say 'helicopter' in"):
        align_term(model, NOISE[:1_280], "helicopter", sampling_rate=16_000)
    with pytest.raises(BadAudioError, match="the clip is silent"):
        align_term(model, np.zeros(16_000, np.int16), "x", sampling_rate=16_000)


def test_an_explanation_says_what_a_search_answers_alone_and_among_others(model):
    retriever = TermRetriever(model)
    clip = NOISE[: 16_000 * 2]
    explained = explain(retriever, clip, "saxophone", sampling_rate=16_000)
    assert (explained.among, explained.rivals) == (None, ())
    index = retriever.index(["saxophone", "sexton", "atrium"], show_progress=False)
    found = {match.term: match for match in retriever.nearest_batch([clip], sampling_rate=16_000)[0]}
    explained = explain(retriever, clip, "saxophone", sampling_rate=16_000, index=index)
    assert explained.among == found["saxophone"]
    assert explained.alone.score == pytest.approx(found["saxophone"].score, abs=1e-6)
    assert {match.term for match in explained.rivals} <= {"sexton", "atrium"}
    with pytest.raises(ValueError, match="'helicopter' is not among the 3 terms"):
        explain(retriever, clip, "helicopter", sampling_rate=16_000, index=index)
