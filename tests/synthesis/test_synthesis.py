import functools
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.synthesis import SpeechRequest, get_engine, read_rendered, render, synthesize_glossary
from qwen_term_retrieval.synthesis import rendering as rendering_module
from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.everyday import everyday_phrase, letter_phrase, number_phrase
from qwen_term_retrieval.synthesis.laptop import laptop_rows
from qwen_term_retrieval.synthesis.ogg import encode_opus, with_serial_zero
from qwen_term_retrieval.synthesis.speech import Speech, at_16_khz
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.spellings import normalize_term

VOICES = [("espeak", "en-gb-scotland+f2@60"), ("flite", "slt"), ("kokoro", "af_sky")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering_module, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "speech"


def engine_or_skip(name):
    try:
        engine = get_engine(name)
        engine.say("ready", engine.voices[0])
    except PackageError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")
    return engine


@pytest.mark.parametrize(("name", "voice"), VOICES)
def test_a_longer_text_takes_longer_and_a_faster_voice_less(name, voice):
    engine = engine_or_skip(name)
    word, rate = engine.say("fever", voice)
    phrase, _ = engine.say("fever and fibrillation", voice)
    fast, _ = engine.say("fever and fibrillation", voice, speed=1.3)
    assert word.dtype == np.float32
    assert 0.05 < np.abs(word).max() <= 1.0
    assert 0.3 < len(word) / rate < 1.5
    assert len(word) < len(fast) < len(phrase)


@pytest.mark.parametrize(("name", "voice"), VOICES)
def test_speech_depends_on_the_arguments_alone(name, voice):
    engine = engine_or_skip(name)
    first, _ = engine.say("ward", voice)
    engine.say("something else", engine.voices[1], speed=0.9)
    again, _ = engine.say("ward", voice)
    assert np.array_equal(first, again)


def test_a_breathy_voice_does_not_depend_on_the_clock():
    espeak = engine_or_skip("espeak")
    first, _ = espeak.say("fever", "en+f2")
    time.sleep(1.1)  # the library seeds its noise by the second
    again, _ = espeak.say("fever", "en+f2")
    assert np.array_equal(first, again)


@pytest.mark.parametrize(("name", "voice"), VOICES)
def test_the_span_of_a_term_in_a_sentence_holds_the_term(name, voice):
    engine = engine_or_skip(name)
    term = "fibrillation"
    sentence = at_16_khz(engine.say_in_sentence("we saw", term, "again", voice))
    alone = at_16_khz(Speech(*engine.say(term, voice)))
    assert 0.2 < sentence.start < sentence.end < sentence.duration - 0.1
    # In running speech a word is somewhat shorter than alone, where up to 80 ms of silence stand on each side.
    assert 0.5 * alone.duration < sentence.end - sentence.start < 1.2 * alone.duration
    assert np.abs(sentence.pcm).max() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("name", "voice"), [("espeak", "en-us+nobody"), ("espeak", "xx"), ("flite", "nobody"), ("kokoro", "zf_xiaobei")]
)
def test_an_unknown_voice_is_refused_by_name(name, voice):
    engine = engine_or_skip(name)
    with pytest.raises(ValueError, match=f"no .*voice '{voice.replace('+', '.')}'"):
        engine.say("fever", voice)


def test_an_unknown_engine_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="espeak, flite, kokoro"):
        get_engine("festival")


def test_speaking_leaves_the_phoneme_towers_espeak_alone():
    from qwen_term_retrieval.text.phonetics import get_phonemizer

    phonemizer = get_phonemizer("espeak:en-us")
    before = phonemizer.phonemes(["tomato dance"])
    engine_or_skip("espeak").say("tomato dance", "en-gb-scotland+f2")
    assert phonemizer.phonemes(["tomato dance"]) == before


def test_silence_at_the_ends_is_cut_and_the_span_moves_with_it():
    rate = 8000
    tone = np.sin(np.arange(rate) * 0.3).astype(np.float32)
    pcm = np.concatenate([np.zeros(rate), tone, np.zeros(rate)]).astype(np.float32)
    trimmed = at_16_khz(Speech(pcm, rate, start=1.25, end=1.75))
    assert trimmed.duration == pytest.approx(1.16, abs=0.03)
    assert trimmed.start == pytest.approx(0.33, abs=0.02)
    assert trimmed.end - trimmed.start == pytest.approx(0.5)
    with pytest.raises(ValueError, match="silence"):
        at_16_khz(Speech(np.zeros(rate, np.float32), rate))


def test_a_clip_is_rendered_once_whatever_the_number_of_processes(cache):
    requests = [SpeechRequest("espeak", "en-us", text) for text in ("one", "two", "two", "a blue door")]
    requests.append(SpeechRequest("espeak", "en-us", "a blue door", before="behind", after="they sat"))
    first = render(requests * 7, num_workers=2, show_progress=False)
    files = {path: path.read_bytes() for path in cache.rglob("*.flac")}
    second = render(requests, num_workers=0, show_progress=False)
    assert first.clips["espeak"] == len(files) == 4
    assert second.from_cache["espeak"] == 4
    for path in files:
        path.unlink()
    render(requests, num_workers=0, show_progress=False)
    assert [read_rendered(r).pcm.tolist() for r in requests] == [
        soundfile.read(io.BytesIO(files[r.path]), dtype="int16")[0].tolist() for r in requests
    ]
    clip = read_rendered(requests[-1])
    assert 0 < clip.start < clip.end < len(clip.pcm) / 16_000
    with pytest.raises(FileNotFoundError, match="call render first"):
        read_rendered(SpeechRequest("espeak", "en-us", "never said"))


def test_what_an_engine_cannot_speak_is_an_error_or_a_counted_skip(cache):
    requests = [SpeechRequest("espeak", "en-us", "door"), SpeechRequest("espeak", "en-us", "…")]
    with pytest.raises(ValueError, match="espeak-en-us could not speak '…'"):
        render(requests, num_workers=0, show_progress=False)
    report = render(requests, num_workers=0, on_error="skip", show_progress=False)
    assert [text for text, _ in report.failed] == ["…"]
    assert report.clips["espeak"] == 1
    assert "1 could not be spoken" in report.summary()


def test_a_killed_rendering_leaves_whole_files_and_no_process(tmp_path):
    script = (
        "from qwen_term_retrieval.synthesis import SpeechRequest, render\n"
        "if __name__ == '__main__':\n"
        "    render([SpeechRequest('espeak', 'en-us', f'number {n}') for n in range(5000)], show_progress=False)\n"
    )
    program = tmp_path / "render.py"
    program.write_text(script)
    process = subprocess.Popen([sys.executable, program], env=os.environ | {"HF_HOME": str(tmp_path)})
    folder = tmp_path / "qwen_term_retrieval" / "speech"
    deadline = time.monotonic() + 30
    while len(list(folder.rglob("*.flac"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers
    assert not [pid for pid in workers if _is_running(pid)]
    clips = list(folder.rglob("*.flac"))
    assert len(clips) >= 20
    assert all(soundfile.info(path).frames > 3000 for path in clips)


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_opus_files_are_the_same_bytes_each_time_and_decode():
    pcm = (8000 * np.sin(np.arange(20_000) * 0.1)).astype(np.int16)
    encoded = encode_opus(pcm, 16_000)
    assert encoded == encode_opus(pcm, 16_000)
    decoded, rate = soundfile.read(io.BytesIO(encoded), dtype="int16")
    assert (len(decoded), rate) == (20_000, 16_000)
    assert np.corrcoef(decoded[2000:-2000], pcm[2000:-2000])[0, 1] > 0.95
    with pytest.raises(ValueError, match="not an Ogg page at byte 0"):
        with_serial_zero(b"RIFF")


def test_a_glossary_becomes_a_corpus_that_can_be_read(cache, tmp_path):
    out = tmp_path / "corpus"
    terms = ["cafe\u0301", "Ulm", " ", "ulm"]
    options = {"voices": ["espeak:en-us", "espeak:en+f2", "espeak:en+m3"], "validation_voices": ["espeak:en-029"]}
    synthesize_glossary(terms, out, **options, voices_per_term=2, num_workers=0, show_progress=False)
    utterances = list(read_corpus(out))
    assert [utterance.split for utterance in utterances] == ["train"] * 4 + ["validation"] * 2
    assert {utterance.terms for utterance in utterances} == {("caf\u00e9",), ("Ulm",)}
    speakers = {split: {u.speaker for u in utterances if u.split == split} for split in ("train", "validation")}
    assert not speakers["train"] & speakers["validation"]
    assert len(speakers["train"]) == 3
    report = json.loads((out / "synthesis.json").read_text())
    assert report["engines"]["espeak"]["clips"] == 6
    with pytest.raises(FileExistsError, match="overwrite=True"):
        synthesize_glossary(terms, out, **options, num_workers=0, show_progress=False)
    with pytest.raises(ValueError, match="engine:voice"):
        synthesize_glossary(terms, tmp_path / "other", voices=["rms"], voices_per_term=1)
    assert not (tmp_path / "other").exists()


def test_a_corpus_of_no_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_corpus([], tmp_path / "empty")


def test_a_folder_of_recordings_is_not_written_over_even_if_asked(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "patient.wav").touch()
    (tmp_path / "mine" / "train.termaudio").write_text('{"audio": "patient.wav"}\n')
    with pytest.raises(FileExistsError, match="mine exists and is not a synthetic corpus; it is left alone"):
        write_corpus([], tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "patient.wav").exists()


def test_a_no_term_row_has_no_terms_in_the_manifest(cache, tmp_path):
    row = CorpusRow(SpeechRequest("espeak", "en-us", "nobody was home"), is_term=False)
    write_corpus([row], tmp_path / "corpus", num_workers=0, show_progress=False)
    (utterance,) = read_corpus(tmp_path / "corpus")
    assert (utterance.text, utterance.terms) == ("nobody was home", ())


@pytest.fixture(scope="module")
def some_laptop_rows():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("wordnet_terms", "wordnet_examples", "medical_terms", "computing_terms", "place_names"):
            patch.setattr(wordlists, name, functools.cache(getattr(wordlists, name)))  # read once for three draws
        try:
            yield laptop_rows(num_clips=600, num_kokoro=60)
        except PackageError as error:
            pytest.skip(f"the package registry cannot be reached: {error}")


def test_the_laptop_corpus_is_the_same_each_time_and_never_says_an_excluded_text(some_laptop_rows):
    assert laptop_rows(num_clips=600, num_kokoro=60) == some_laptop_rows
    said = [normalize_term(row.request.text) for row in some_laptop_rows]
    excluded = frozenset(said[::5])
    rows = laptop_rows(num_clips=600, num_kokoro=60, exclude=excluded)
    assert len(rows) == 600
    assert not [row for row in rows if normalize_term(row.request.text) in excluded]
    assert not [row for row in rows if normalize_term(row.request.sentence) in excluded]


def test_the_laptop_corpus_says_each_text_once_in_voices_that_splits_do_not_share(some_laptop_rows):
    texts = [normalize_term(row.request.text) for row in some_laptop_rows]
    assert len(set(texts)) == len(texts) == 600
    assert max(len(text.split()) for text in texts) <= 6
    engines = [row.request.engine for row in some_laptop_rows]
    assert engines.count("kokoro") == 60
    assert 100 < engines.count("flite") < engines.count("espeak")
    voices = {
        split: {row.request.speaker for row in some_laptop_rows if row.split == split}
        for split in ("train", "validation")
    }
    assert voices["validation"]
    assert not voices["train"] & voices["validation"]
    assert 0.05 < np.mean([bool(row.request.before) for row in some_laptop_rows]) < 0.15


@pytest.mark.parametrize("draw", [everyday_phrase, number_phrase, letter_phrase])
def test_drawn_phrases_are_short_words_without_digits(draw):
    rng = random.Random(0)
    phrases = list(itertools.islice((draw(rng) for _ in itertools.count()), 500))
    assert all(1 <= len(phrase.split()) <= 9 for phrase in phrases)
    assert not [phrase for phrase in phrases if any(sign.isdigit() or sign in "{}-," for sign in phrase)]
    assert len(set(phrases)) > 150
