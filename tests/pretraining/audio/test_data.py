"""What is heard of a clip and what is learned of it: levels, places, lengths, and what is refused."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.planning import DistortionPlanner
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.loading import load_rows
from qwen_term_retrieval.pretraining.audio import ClipSettings, NestClips
from qwen_term_retrieval.pretraining.audio.data import NEST_AUGMENTATION, fixed_visits, speaker_numbers
from qwen_term_retrieval.runs.sampling import Visit
from tests.doubles.tiny_nest import demo_rows, tiny_clips, tiny_config

ALWAYS = {"noise_prob": 1.0}


def planner(**settings):
    rows = demo_rows()
    config = AugmentationConfig.from_dict({**NEST_AUGMENTATION, **ALWAYS, **settings})
    return DistortionPlanner(config, ClipReader(rows), speakers=speaker_numbers(rows))


def added_to(clips, visit):
    """Clean clip, what was added to it and by how much it was scaled down, float64."""
    batch = clips.batch([visit])
    clean, noisy = (batch[name][0].double().numpy() for name in ("pcm_BS", "noisy_pcm_BS"))
    return clean, noisy


def decibels(first, second):
    return 10 * np.log10((first**2).mean() / (second**2).mean())


@pytest.mark.parametrize("segments", [(1, 1), (3, 3)], ids=["one piece", "three pieces"])
@pytest.mark.parametrize("speech_share", [0.0, 1.0], ids=["babble", "another talker"])
def test_noise_is_as_loud_as_asked_for_where_it_sounds_and_sounds_nowhere_else(segments, speech_share):
    settings = ALWAYS | {"noise_segments": segments, "speech_share": speech_share, "talkers": (1, 3)}
    clips = tiny_clips(tiny_config(), augmentation=settings | {"noise_snr_db": (8, 8), "speech_snr_db": (8, 8)})
    measured = []
    for visit in fixed_visits(40, seed=1):
        plan = clips.planner.draw(visit.draw, visit.clip, len(clips.batch([visit])["pcm_BS"][0]))
        clean, noisy = added_to(clips, visit)
        sounds = np.zeros(len(clean), bool)
        for first, length in plan.added.parts:
            assert not sounds[first : first + length].any()  # pieces do not overlap
            sounds[first : first + length] = True
        assert len(plan.added.parts) == segments[0]
        assert sounds.mean() == pytest.approx(0.5, abs=1e-3)
        if np.array_equal(clean[~sounds], noisy[~sounds]):  # not scaled down so that it does not clip
            measured.append(decibels(clean[sounds], (noisy - clean)[sounds]))
    assert len(measured) > 15
    # Where the clip is silent, the ratio is to its mean; most clips are not, and then it is what was asked for.
    assert np.median(np.abs(np.array(measured) - 8)) < 0.05
    assert min(measured) < 8.1


def test_a_silent_part_is_not_left_without_noise():
    clips = tiny_clips(tiny_config(), augmentation=ALWAYS | {"speech_share": 1.0, "silence_prob": 1.0})
    differing = 0
    for visit in fixed_visits(20, seed=2):
        clean, noisy = added_to(clips, visit)
        differing += bool((clean != noisy).any())
    assert differing == 20


def test_visits_that_are_passed_over_are_heard_as_they_were_recorded():
    clips = tiny_clips(tiny_config(), augmentation={"noise_prob": 0.5})
    batch = clips.batch(fixed_visits(40, seed=3))
    same_B = (batch["pcm_BS"] == batch["noisy_pcm_BS"]).all(1)
    assert 8 < int(same_B.sum()) < 32
    expected = [max(int(length), 16_000) for length in clips.reader.num_samples[:40]]
    assert batch["num_samples_B"].tolist() == expected  # never the length of the noise
    clean = NestClips(demo_rows(), tiny_config(), ClipSettings(augmentation=None)).batch(fixed_visits(40, seed=3))
    assert "noisy_pcm_BS" not in clean
    assert torch.equal(clean["pcm_BS"], batch["pcm_BS"])


def test_a_visit_is_heard_and_hidden_alike_in_any_batch():
    clips = tiny_clips(tiny_config(), augmentation={"noise_prob": 1.0, "speed_prob": 1.0, "gain_prob": 1.0})
    visits = fixed_visits(12, seed=4)
    together, alone = clips.batch(visits), clips.batch([visits[5]])
    for name in ("pcm_BS", "noisy_pcm_BS", "mask"):
        width = alone[name].shape[1]
        assert torch.equal(together[name][5, :width], alone[name][0]), name
    other = clips.batch([visits[5]._replace(draw=99)])
    assert not torch.equal(other["noisy_pcm_BS"][0, :9000], alone["noisy_pcm_BS"][0, :9000])


def test_speed_and_silence_belong_to_what_is_learned_and_gain_does_not():
    settings = {"noise_prob": 0.0, "speed_prob": 1.0, "speed": (1.1, 1.1), "silence_prob": 1.0}
    silence = {"silence_seconds": (0.2, 0.2), "hiss_dbfs": (-90, -90)}
    clips = tiny_clips(tiny_config(), augmentation={**settings, **silence, "gain_prob": 1.0, "gain_db": (-6, -6)})
    batch = clips.batch([Visit(0, 7)])
    before = max(int(clips.reader.num_samples[0]), 16_000)
    assert batch["num_samples_B"].item() == round(before / 1.1) + 2 * 3200
    assert np.abs(batch["pcm_BS"][0, :3000].numpy()).max() < 10
    assert decibels(batch["pcm_BS"].double().numpy(), batch["noisy_pcm_BS"].double().numpy()) == pytest.approx(6, 0.02)


def test_another_talker_is_another_one_and_takes_turns():
    rows, found = demo_rows(), set()
    speakers = rows["speaker"][:]
    plan = planner(speech_share=1.0, noise_segments=(3, 3), talkers=(2, 3))
    for visit in fixed_visits(60, seed=5):
        added = plan.draw(visit.draw, visit.clip, 24_000).added
        assert added.kind == "speech"
        found.add(len(added.crops))
        assert all(speakers[clip] != speakers[visit.clip] for clip, _ in added.crops)
    assert found == {2, 3}


@examples(deadline=None, max_examples=50)
@given(st.integers(0, 2**62), st.integers(1, 40_000), st.floats(0.05, 1.0), st.integers(1, 4))
def test_parts_lie_within_the_clip_one_behind_the_other(draw, num_samples, span, segments):
    plan = planner(noise_span=(span, span), noise_segments=(segments, segments))
    parts = plan._draw_parts(np.random.default_rng(draw), num_samples)
    if parts:
        ends = [first + length for first, length in parts]
        assert all(length > 0 for _, length in parts)
        assert all(end <= first for end, (first, _) in zip(ends, parts[1:], strict=False))
        assert (parts[0][0], ends[-1]) >= (0, 0)
        assert ends[-1] <= num_samples
        assert sum(length for _, length in parts) == max(1, round(span * num_samples))
    else:
        assert (span, segments) == (1.0, 1)


@pytest.mark.parametrize(("padding", "behind"), [("repeat", "speech"), ("zero", "silence")])
def test_a_short_clip_is_made_as_long_as_asked_for(padding, behind):
    clips = tiny_clips(tiny_config(), min_seconds=3.0, padding=padding, augmentation=None)
    shortest = int(clips.reader.num_samples.argmin())
    pcm_S, length = clips.batch([Visit(shortest, 1)])["pcm_BS"][0], int(clips.reader.num_samples[shortest])
    assert len(pcm_S) == 48_000
    assert length < 16_000
    rest = pcm_S[length : 2 * length]
    assert torch.equal(rest, pcm_S[:length] if behind == "speech" else torch.zeros_like(rest))
    assert clips.durations.min() == 3.0


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """Folders of audio without labels: speech and hum, and silence."""
    folder = tmp_path_factory.mktemp("loose")
    for name, level in (("speech", 3000), ("silence", 0)):
        (folder / name).mkdir()
        for number, seconds in enumerate((0.5, 0.8, 1.2, 2.0)):
            wave = np.random.default_rng(number).normal(0, 1, round(seconds * 16_000)) * level
            soundfile.write(folder / name / f"{number}.wav", wave.astype(np.int16), 16_000, subtype="PCM_16")
    return folder


def test_noise_of_silence_is_refused_and_white_noise_is_the_reported_last_resort(loose, caplog):
    settings = {"noise": str(loose / "silence"), "speech_share": 0.0, "noise_prob": 1.0}
    with pytest.raises(ValueError, match=r"noise: '.*silence' is silent: of 4 recordings none is above -60 dBFS"):
        tiny_clips(tiny_config(), augmentation=settings)
    rows = load_rows(str(loose / "silence"), ("audio",))["train"]
    clips = NestClips(rows, tiny_config(), ClipSettings(augmentation=ALWAYS | {"speech_share": 1.0}))
    with caplog.at_level(logging.WARNING):
        clean, noisy = added_to(clips, Visit(3, 5))
    assert clips.planner.num_white_noise == 1
    assert "a clip gets white noise, because 20 recordings" in caplog.text
    assert not clean.any()
    assert noisy.any()


def test_speech_without_labels_or_splits_is_enough(loose):
    clips = NestClips(load_rows(str(loose / "speech"), ("audio",))["train"], tiny_config(), ClipSettings())
    assert len(clips) == 4
    assert clips.batch(fixed_visits(4, seed=0))["mask"].any(1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_seconds": 0.3, "max_seconds": 60}, None),
        ({"min_seconds": 0.0, "max_seconds": 1.0}, r"the pack: clip '.*' lasts 2.0 s, and max_clip_seconds is 1"),
        ({"min_seconds": 61.0}, r"min_seconds must lie between 0 and max_clip_seconds 60"),
        ({"padding": "mirror"}, r"padding must be one of repeat, zero, not 'mirror'"),
        ({"augmentation": {"noise_spans": 1}}, r"'noise_spans' is no setting.*noise_span"),
        ({"augmentation": {"noise": "nowhere/at_all"}}, r"no recordings 'nowhere/at_all'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(loose, settings, message):
    rows = load_rows(str(loose / "speech"), ("audio",))["train"]
    if message is None:
        NestClips(rows, tiny_config(), ClipSettings(**settings), "the pack")
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        NestClips(rows, tiny_config(), ClipSettings(**settings), "the pack")


def test_a_pack_shorter_than_one_block_is_refused_and_so_is_a_clip_of_no_frame(loose):
    rows = load_rows(str(loose / "speech"), ("audio",))["train"]
    longest = {"min_seconds": 0.0, "augmentation": None}
    with pytest.raises(
        ValueError, match=r"the pack: the longest clip, clip '.*', has 2.00 s, and a hidden block has 3"
    ):
        NestClips(rows, tiny_config(block_frames=300), ClipSettings(**longest), "the pack")
    short = rows.map(lambda row: {"audio": row["audio"].trim(0, 0.015)})
    with pytest.raises(ValueError, match=r"clip '.*' has 240 samples, and 320 are two mel frames; set min_seconds"):
        NestClips(short, tiny_config(), ClipSettings(**longest), "the pack")
