"""Distortions as they sound: at the ratio asked for, the same anywhere, and with every term where it is heard."""

import doctest

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.augmentation import distortion
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.distortion import collate_distortions, convolve, distort, mu_law
from qwen_term_retrieval.augmentation.impulse_responses import band_filter, synthetic_impulse_response
from qwen_term_retrieval.augmentation.planning import Ingredients
from qwen_term_retrieval.augmentation.visits import Augmentation, DistortedCopies, load_recordings
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.data.audio_source import CachedFrames, PcmFrames, cached_frames, distort_inputs
from qwen_term_retrieval.training.data.clips import TrainingClips, annotate_terms
from qwen_term_retrieval.training.data.collator import TermCollator
from tests.processes.trainer import make_trainer

RATE = 16_000
EVERYTHING = {"noise_prob": 0.8, "reverb_prob": 0.6, "speed_prob": 0.6, "band_prob": 0.3, "telephone_prob": 0.3}


@pytest.fixture(scope="module")
def rows(demo_rows):
    train = demo_rows["train"].select(range(0, 1590, 30))
    return annotate_terms(train, Glossary(sorted({term for terms in train["terms"] for term in terms})))


def augmentation(rows, num_copies=None, **settings):
    return Augmentation(AugmentationConfig(**settings), rows, max_seconds=30.0, num_copies=num_copies)


def visits(rows, count=24, seed=0):
    generator = np.random.default_rng(seed)
    clips, draws = generator.integers(len(rows), size=count), generator.integers(1 << 62, size=count)
    return [Visit(clip, draw) for clip, draw in zip(clips.tolist(), draws.tolist(), strict=True)]


def apply(*clips):
    pcm_BS, num_samples_B = pad_pcm([clip.pcm for clip in clips])
    return distort(pcm_BS, num_samples_B, collate_distortions(clips))


def power_db(samples):
    return 10 * np.log10(np.mean(np.square(samples.astype(np.float64))) + 1e-9)


def hum(num_samples, level=1000, seed=0):
    return (np.random.default_rng(seed).standard_normal(num_samples) * level).astype(np.int16)


# ---- what is heard -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 13.3])
def test_noise_stands_at_its_ratio_to_the_whole_clip_to_a_tenth_of_a_decibel(rows, snr_db):
    speech = ClipReader(rows).views(range(6))
    clips = [Ingredients(pcm // 4, hum(len(pcm), seed=n), snr_db) for n, pcm in enumerate(speech)]
    distorted_BS, scale_B = apply(*clips)
    assert (scale_B == 1).all()
    for row, clip in zip(distorted_BS.numpy(), clips, strict=True):
        noise = row[: len(clip.pcm)].astype(np.int32) - clip.pcm
        assert power_db(clip.pcm) - power_db(noise) == pytest.approx(snr_db, abs=0.1)
        assert (row[len(clip.pcm) :] == 0).all()


def test_the_ratio_is_to_the_reverberant_clip_and_reverberation_keeps_the_loudness(rows):
    (speech,) = ClipReader(rows).views([0])
    speech, noise = speech // 4, hum(len(speech))
    room = synthetic_impulse_response(0.6, 0.0, np.random.default_rng(0))
    (wet, both), _ = apply(
        Ingredients(speech, impulse_response=room), Ingredients(speech, noise, 3.0, impulse_response=room)
    )
    assert power_db(wet.numpy()) == pytest.approx(power_db(speech), abs=0.01)
    assert power_db(wet.numpy()) - power_db((both - wet).numpy()) == pytest.approx(3.0, abs=0.1)


def test_a_room_is_heard_as_its_impulse_response_and_moves_nothing_in_time():
    click = np.zeros(RATE, np.int16)
    click[4000] = 8000
    room = synthetic_impulse_response(0.3, 6.0, np.random.default_rng(1))
    ((heard,), _) = apply(Ingredients(click, impulse_response=room))
    expected = np.zeros(RATE)
    expected[4000 : 4000 + len(room)] = room
    expected *= 8000 / np.sqrt(np.square(expected).sum())
    assert int(heard.abs().argmax()) == 4000
    np.testing.assert_allclose(heard.numpy(), expected, atol=0.51)


def test_batched_convolution_equals_numpy():
    generator = np.random.default_rng(0)
    wave, response = generator.standard_normal((3, 400)), generator.standard_normal((3, 57))
    heard = convolve(torch.from_numpy(wave), torch.from_numpy(response), delay=5)
    expected = [np.convolve(*pair)[5:405] for pair in zip(wave, response, strict=True)]
    np.testing.assert_allclose(heard.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("hertz", "change_db"), [(100, -40), (1000, 0), (3000, 0), (5000, -40)])
def test_a_telephone_passes_its_band_alone(hertz, change_db):
    tone = (np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) * 8000).astype(np.int16)
    band = band_filter(300.0, 3400.0)
    ((heard,), _) = apply(Ingredients(tone, band_filter=band, telephone=True))
    middle = slice(1000, -1000)
    difference = power_db(heard.numpy()[middle]) - power_db(tone[middle])
    assert difference == pytest.approx(0, abs=0.2) if change_db == 0 else difference < change_db


def test_mu_law_is_as_noisy_as_eight_bits_are():
    wave = torch.from_numpy(np.random.default_rng(0).uniform(-16_000, 16_000, 20_000))
    noise = mu_law(wave) - wave
    assert 35 < 10 * np.log10(float(wave.square().mean() / noise.square().mean())) < 40
    assert mu_law(torch.tensor([0.0, 32768, -32768])).tolist() == pytest.approx([0.0, 32768, -32768])


def test_a_clip_that_nothing_happens_to_is_bit_identical_beside_others_that_change(rows):
    untouched, other = ClipReader(rows).views([0, 1])
    room = synthetic_impulse_response(0.3, 6.0, np.random.default_rng(1))
    distorted_BS, _ = apply(Ingredients(untouched), Ingredients(other, hum(len(other)), 0.0, room, gain_db=3.0))
    np.testing.assert_array_equal(distorted_BS[0, : len(untouched)], untouched)
    assert not np.array_equal(distorted_BS[1, : len(other)], other)


def test_digital_silence_stays_silent_under_noise():
    ((heard,), _) = apply(Ingredients(np.zeros(500, np.int16), hum(500), 0.0))
    assert (heard == 0).all()


def test_what_would_clip_is_scaled_and_reported():
    loud = (np.sin(np.arange(RATE) / 20) * 20_000).astype(np.int16)
    distorted_BS, scale_B = apply(Ingredients(loud, gain_db=12.0), Ingredients(loud, gain_db=1.0))
    assert scale_B.tolist() == pytest.approx([32767 / (20_000 * 10 ** (12 / 20)), 1.0], rel=1e-3)
    assert distorted_BS[0].abs().max() == 32767
    np.testing.assert_allclose(distorted_BS[0] / 32767, loud / 20_000, atol=1e-3)


# ---- the same anywhere -------------------------------------------------------------------------------------------


def test_a_visit_sounds_the_same_in_any_batch_order_and_number_of_threads(rows):
    distorted = augmentation(rows, **EVERYTHING)
    clips = TrainingClips(rows, augmentation=distorted)
    source = PcmFrames(distorted.clips, lambda num_samples_B: num_samples_B // 320, distorted)
    everyone = visits(rows)

    def heard(*batches):
        by_visit = {}
        for batch in batches:
            inputs, _ = source(clips.__getitems__(list(batch)))
            for visit, pcm, length in zip(batch, inputs["pcm_BS"], inputs["num_samples_B"].tolist(), strict=True):
                by_visit[visit] = pcm[:length].clone()
        return by_visit

    together = heard(everyone)
    torch.set_num_threads(2)
    alone = heard(*[[visit] for visit in everyone])
    torch.set_num_threads(1)
    shares = heard(everyone[::2], everyone[1::2][::-1])
    assert all(torch.equal(together[visit], other[visit]) for other in (alone, shares) for visit in everyone)
    changed = sum(not np.array_equal(together[visit], rows[visit.clip]["audio"].pcm) for visit in everyone)
    assert changed > 12


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_hear_what_one_process_hears(rows, num_workers):
    distorted = augmentation(rows, **EVERYTHING)
    batches = [visits(rows, 6, seed) for seed in range(3)]

    def load(workers):
        loader = DataLoader(
            TrainingClips(rows, augmentation=distorted),
            batch_sampler=batches,
            collate_fn=PcmFrames(distorted.clips, _no_frames, distorted),
            num_workers=workers,
        )
        return [inputs["pcm_BS"] for inputs, _ in loader]

    assert all(torch.equal(*pair) for pair in zip(load(0), load(num_workers), strict=True))


def _no_frames(num_samples_B):
    return num_samples_B


@pytest.mark.gpu
def test_a_device_hears_what_the_cpu_hears(rows):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    distorted = augmentation(rows, **EVERYTHING)
    clips = TrainingClips(rows, augmentation=distorted).__getitems__(visits(rows))
    pcm_BS, num_samples_B, distortions = distorted.load([(row["clip"], row["distortion"]) for row in clips])
    on_cpu, _ = distort(pcm_BS, num_samples_B, distortions)
    moved = {name: values.cuda() for name, values in distortions.items()}
    on_device, _ = distort(pcm_BS.cuda(), num_samples_B.cuda(), moved)
    assert torch.equal(on_device.cpu(), on_cpu)


def test_a_batch_distorted_on_the_device_is_the_one_distorted_in_the_collator(rows):
    distorted = augmentation(rows, **EVERYTHING)
    clips = TrainingClips(rows, augmentation=distorted).__getitems__(visits(rows))
    here, _ = PcmFrames(distorted.clips, _no_frames, distorted)(clips)
    to_the_device, _ = PcmFrames(distorted.clips, _no_frames, distorted, on_device=True)(clips)
    assert not torch.equal(to_the_device["pcm_BS"], here["pcm_BS"])
    there = distort_inputs(to_the_device)
    assert there.keys() == here.keys()
    assert torch.equal(there["pcm_BS"], here["pcm_BS"])


# ---- terms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.8, 1.25])
@pytest.mark.parametrize("silence_prob", [0.0, 1.0])
def test_the_span_of_a_term_covers_the_same_sound_after_a_change_of_speed_and_silence(tmp_path, speed, silence_prob):
    quiet, loud = hum(RATE, 30), hum(RATE // 2, 6000, seed=1)
    spoken = np.concatenate([quiet, loud, quiet])
    said = {"text": "say drug now", "terms": ("drug",), "term_spans": ((1.0, 1.5),), "sampling_rate": RATE}
    pack_corpus([Utterance(key, spoken, **said) for key in "ab"], tmp_path / "pack")
    rows = annotate_terms(datasets.load_dataset(str(tmp_path / "pack"))["train"], Glossary(["drug"]))
    nothing = dict.fromkeys(("noise_prob", "reverb_prob", "band_prob", "telephone_prob", "gain_prob"), 0.0)
    nothing |= {"silence_prob": silence_prob, "silence_seconds": (0.1, 0.4), "hiss_dbfs": (-80, -80)}
    distorted = augmentation(rows, **nothing, speed_prob=1.0, speed=(speed, speed))
    collate = TermCollator(
        PcmFrames(distorted.clips, lambda num_samples_B: num_samples_B // 320, distorted),
        None,
        lambda texts, languages: {},
        50.0,
        span_jitter=0.0,
    )
    batch = collate(TrainingClips(rows, augmentation=distorted).__getitems__([Visit(0, 1), Visit(1, 2)]))
    inputs = batch["model_inputs"]
    for query in batch["term_queries"]["windows_QW"][:, 0]:
        start, end = round(float(inputs["start_P"][query]) * 320), round(float(inputs["end_P"][query]) * 320)
        pcm = inputs["pcm_BS"][inputs["clip_index_P"][query]].numpy()
        assert end - start == pytest.approx(RATE / 2 / speed, abs=2)
        assert power_db(pcm[start + 50 : end - 50]) > 70
        assert max(power_db(pcm[: start - 50]), power_db(pcm[end + 50 :])) < 35


def test_the_terms_of_somebody_else_talking_are_no_negatives(rows):
    distorted = augmentation(rows, noise_prob=1.0, speech_share=1.0)
    for row in TrainingClips(rows, augmentation=distorted).__getitems__(visits(rows, 6)):
        ((beside, _),) = row["distortion"].added.crops
        assert beside != row["clip"]
        assert {*rows[beside]["term_ids"], *rows[row["clip"]]["spoken_ids"]} <= set(row["spoken_ids"])


# ---- copies under a frozen tower ---------------------------------------------------------------------------------


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 2}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=tower, text_tower="phonemes:characters"))
    model.train_audio_tower(False)
    return model.eval()


def test_a_visit_of_a_copy_gets_the_frames_of_that_copy(rows, model, tmp_path):
    distorted = augmentation(rows, num_copies=2, **EVERYTHING)
    cache = cached_frames(model, rows, distorted, tmp_path)
    assert (len(cache), cache.num_computed) == (3 * len(rows), 3 * len(rows))
    heard = TrainingClips(rows, cache, distorted).__getitems__(visits(rows, 12))
    assert {row["copy"] for row in heard} == {0, 1, 2}
    inputs, num_frames_B = CachedFrames(cache, num_clips=len(rows))(heard)
    live, num_live_B = PcmFrames(distorted.clips, model.audio_tower.num_frames, distorted)(heard)
    assert num_frames_B.tolist() == num_live_B.tolist()
    with torch.no_grad():
        frames_BTH, _ = model.audio_frames(**live)
    for row, expected, frames in zip(inputs["frames_BTH"], frames_BTH, num_frames_B.tolist(), strict=True):
        torch.testing.assert_close(row[:frames].float(), expected[:frames], atol=5e-3, rtol=0)


def test_copies_are_computed_once_and_anew_for_other_settings_and_clips_never_twice(rows, model, tmp_path):
    cached_frames(model, rows, cache_dir=tmp_path)
    few = rows.select(range(10))
    assert cached_frames(model, few, augmentation(few, 1), tmp_path).num_computed == 10
    assert cached_frames(model, few, augmentation(few, 1), tmp_path).num_computed == 0
    assert cached_frames(model, few, augmentation(few, 2), tmp_path).num_computed == 10
    assert cached_frames(model, few, augmentation(few, 1, gain_prob=1.0), tmp_path).num_computed == 10


def test_other_noise_in_the_same_place_makes_other_copies(rows, tmp_path):
    digests = []
    for seed in (0, 0, 1):
        soundfile.write(tmp_path / "fan.wav", hum(RATE, seed=seed), RATE)
        digests.append(DistortedCopies(augmentation(rows, 1, noise=str(tmp_path))).digests())
    assert digests[0] == digests[1]
    recorded, copies = slice(len(rows)), slice(len(rows), None)
    assert digests[0][recorded] == digests[2][recorded]
    assert not set(digests[0][copies]) & set(digests[2][copies])


def test_a_frozen_tower_without_copies_says_what_to_do(rows):
    with pytest.raises(ValueError, match="set augmented_copies to 1 or more, or train the tower"):
        augmentation(rows, num_copies=0)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_recordings_come_from_a_folder_of_audio(tmp_path):
    soundfile.write(tmp_path / "fan.wav", hum(RATE), RATE)
    reader = ClipReader(load_recordings(str(tmp_path), "noise"))
    assert reader.num_samples.tolist() == [RATE]


def test_recordings_that_are_not_there_are_named_with_their_setting(tmp_path):
    with pytest.raises(FileNotFoundError, match="augmentation: noise: no recordings 'nowhere/at-all'"):
        load_recordings("nowhere/at-all", "noise")


def test_a_flag_switches_augmentation_on_and_a_wrong_setting_is_refused(tmp_path):
    args = TermRetrievalArguments(output_dir=str(tmp_path), augmentation='{"gain_prob": 0.2, "noise": "packs/noise"}')
    assert AugmentationConfig.from_dict(args.augmentation).gain_prob == 0.2
    with pytest.raises(ValueError, match="'gain' is no setting; did you mean 'gain_db'"):
        TermRetrievalArguments(output_dir=str(tmp_path), augmentation={"gain": 0.2})


def test_the_example_runs():
    tried = doctest.testmod(distortion)
    assert (tried.failed, tried.attempted > 3) == (0, True)


# ---- in a run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_run_trains_on_augmented_clips_and_evaluates_on_clean_ones(tmp_path, lora_r):
    settings = {"augmentation": {**EVERYTHING, "augmented_copies": 1}, "frame_cache_dir": str(tmp_path / "frames")}
    trainer = make_trainer(tmp_path / "run", 16, lora_r=lora_r, max_steps=2, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    again = next(iter(trainer.get_train_dataloader()))
    name = "pcm_BS" if lora_r else "frames_BTH"
    assert torch.equal(batch["model_inputs"][name], again["model_inputs"][name])
    trainer.train()
    assert trainer.train_clips.augmentation is not None
    assert trainer.eval_dataset.augmentation is None
    assert trainer.evaluate()["eval_pairs"] > 0
