from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.audio.decoding import pcm_blocks
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.packs.writing import segments
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


@pytest.fixture
def counted(monkeypatch) -> list:
    """What was decoded for segments, in order."""
    decoded = []

    def counting(audio, rate, **kwargs):
        decoded.append(audio)
        return pcm_blocks(audio, rate, **kwargs)

    monkeypatch.setattr(segments, "pcm_blocks", counting)
    return decoded


@pytest.fixture
def long_flac(tmp_path) -> Path:
    """Two minutes of noise at 22,050 Hz, in stereo."""
    rng = np.random.default_rng(1)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 22_050, 2) as file:
        for _ in range(2 * 60):
            file.write(rng.integers(-9000, 9000, (22_050, 2), dtype=np.int16))
    return tmp_path / "long.flac"


def whole(path: Path) -> np.ndarray:
    return np.concatenate([pcm for pcm, _ in pcm_blocks(path, RATE)])


def test_two_hundred_segments_of_a_recording_are_cut_from_one_decoding_of_it(long_flac, counted, tmp_path):
    rng = np.random.default_rng(2)
    starts = rng.uniform(0, 110, 200).round(3).tolist()
    ends = [start + length for start, length in zip(starts, rng.uniform(0.2, 10, 200).round(3).tolist(), strict=True)]
    cuts = [
        Utterance(f"s{i}", long_flac, start=start, end=end)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    assert len(cuts) > 2 * UTTERANCES_PER_PART
    pack_corpus(cuts, tmp_path / "pack", **QUIET)
    assert counted == [long_flac]
    pack, expected = Pack.open(tmp_path / "pack"), whole(long_flac)
    for cut in cuts:
        first, last = round(cut.start * RATE), round(cut.end * RATE)
        np.testing.assert_array_equal(pack.find(cut.key).clip.pcm, expected[first:last])
    assert not list(tmp_path.rglob("*.recording"))


def test_the_bytes_of_cut_recordings_do_not_depend_on_the_workers(long_flac, noise, tmp_path):
    utterances = []
    for i in range(45):
        utterances.append(Utterance(f"whole{i}", noise(i, 0.1), sampling_rate=RATE))
        utterances += [Utterance(f"cut{i}-{j}", long_flac, start=j, end=j + 0.5) for j in range(i % 3)]
    pack_corpus(utterances, tmp_path / "one", **QUIET)
    pack_corpus(utterances, tmp_path / "two", num_workers=2, quiet=True)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]


def test_a_recording_is_decoded_no_further_than_its_segments_reach(tmp_path, noise, monkeypatch):
    decoded = []

    def counting(*args, **kwargs):
        for block in pcm_blocks(*args, **kwargs):
            decoded.append(block)
            yield block

    monkeypatch.setattr(segments, "pcm_blocks", counting)
    cut = Utterance("cut", noise(1, 100), sampling_rate=RATE, start=3, end=4)
    pack_corpus([cut], tmp_path / "pack", **QUIET)
    assert sum(len(pcm) for pcm, _ in decoded) < 20 * RATE


def test_segments_before_the_place_where_a_recording_is_corrupt_are_good(tmp_path, noise):
    soundfile.write(tmp_path / "a.flac", noise(1, 200), RATE)
    corrupt = bytearray((tmp_path / "a.flac").read_bytes())
    corrupt[len(corrupt) // 2 :] = bytes(len(corrupt) - len(corrupt) // 2)
    (tmp_path / "a.flac").write_bytes(corrupt)
    cuts = [Utterance(f"s{i}", tmp_path / "a.flac", start=i, end=i + 1) for i in range(5)]
    summary = pack_corpus(cuts, tmp_path / "pack", **QUIET)
    assert summary.num_clips == 5
    with pytest.raises(CorpusError, match=r"key 'late', file .*a.flac: corrupt near sample"):
        pack_corpus([*cuts, Utterance("late", tmp_path / "a.flac", start=190, end=191)], tmp_path / "bad", **QUIET)
    late = pack_corpus(
        [*cuts, Utterance("late", tmp_path / "a.flac", start=190, end=191)], tmp_path / "some", on_error="skip", **QUIET
    )
    assert (late.num_clips, [problem["key"] for problem in late.problems]) == (5, ["late"])


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.5, 3.0, r"a segment from 0.5 s to 3 s does not fit into a recording of 1.00 s"),
        (1.0, None, r"a segment from 1 s to its end does not fit into a recording of 1.00 s"),
        (2.0, 3.0, r"does not fit into a recording of 1.00 s"),
        (0.5, 0.5, r"holds no sample"),
        (0.7, 0.2, r"holds no sample"),
        (-0.5, 0.5, r"holds no sample"),
    ],
)
def test_a_segment_that_is_not_in_the_recording_is_bad_audio(start, end, message, noise, tmp_path):
    bad = Utterance("bad", noise(1, 1.0), sampling_rate=RATE, start=start, end=end)
    with pytest.raises(CorpusError, match=message):
        pack_corpus([bad], tmp_path / "pack", **QUIET)


def test_an_end_rounded_past_the_last_sample_and_no_end_mean_the_last_sample(noise, tmp_path):
    audio = noise(1, 1.0)
    cuts = [
        Utterance("rounded", audio, sampling_rate=RATE, start=0.5, end=1.04),
        Utterance("open", audio, sampling_rate=RATE, start=0.5),
    ]
    pack_corpus(cuts, tmp_path / "pack", **QUIET)
    for key in ("rounded", "open"):
        np.testing.assert_array_equal(Pack.open(tmp_path / "pack").find(key).clip.pcm, audio[8000:])


def test_clipped_samples_of_a_recording_are_counted_once(tmp_path):
    loud = np.full(RATE, 2.0, np.float32)
    cuts = [Utterance(f"s{i}", loud, sampling_rate=RATE, start=0.1 * i, end=0.5) for i in range(4)]
    assert pack_corpus(cuts, tmp_path / "pack", **QUIET).num_clipped_samples == RATE


recording = st.sampled_from(["a.wav", "b.wav", b"c"])
cut = st.tuples(recording, st.booleans())


@given(st.lists(cut, max_size=30))
@settings(max_examples=100)
def test_runs_hold_all_utterances_in_order_and_only_neighbours_that_cut_one_recording(cuts):
    utterances = [
        Utterance(str(i), audio, end=1.0 if is_cut else None, sampling_rate=1) for i, (audio, is_cut) in enumerate(cuts)
    ]
    runs = list(segments.recordings(utterances))
    assert [utterance for run in runs for utterance in run] == utterances
    for run in runs:
        assert len(run) == 1 or (len({u.audio for u in run}) == 1 and all(u.end for u in run))
    for before, after in pairwise(runs):
        assert before[-1].audio != after[0].audio or not (before[-1].end and after[0].end)
