import io
import logging
import sys
import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from qwen_term_retrieval import progress
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.models.spans.windows import window_grid
from qwen_term_retrieval.retrieval import encoding
from qwen_term_retrieval.retrieval.calibration import calibrate
from qwen_term_retrieval.retrieval.index import TermIndexError
from qwen_term_retrieval.retrieval.indexing import embedding, indexer
from qwen_term_retrieval.retrieval.retriever import TermRetriever

TERMS = ["atrial fibrillation", "pneumonia", "kubernetes", "saxophone", "linear algebra"]
SECOND = np.zeros(16_000, np.int16)


@pytest.fixture
def retriever(listening_model):
    listening_model.config.threshold = None
    retriever = TermRetriever(listening_model)
    retriever.index(TERMS)
    yield retriever
    listening_model.config.threshold = None


@pytest.fixture(scope="session")
def recording(say):
    """Ten seconds and more: (int16 at 16 kHz, [(term, start, end)])."""
    pieces, said, now = [], [], 0.0
    for term, speed, pause in [
        ("atrial fibrillation", 1.05, 2),
        ("saxophone", 1.0, 3),
        ("atrial fibrillation", 1.1, 4),
    ]:
        pcm = say(term, speed=speed)
        now += pause
        said.append((term, now, now + len(pcm) / 16_000))
        now += len(pcm) / 16_000
        pieces += [*[SECOND] * pause, pcm]
    clean = np.concatenate([*pieces, SECOND])
    hiss = np.random.default_rng(0).normal(0, 20, len(clean))
    return (clean + hiss).astype(np.int16), said


def overlap(match, start, end):
    return max(0.0, min(match.end, end) - max(match.start, start)) / (max(match.end, end) - min(match.start, start))


def test_a_spoken_term_comes_first(retriever, say):
    for term in TERMS:
        matches = retriever.search((say(term, "en-us", 1.05), 16_000), top_k=3)
        assert matches[0].term == term
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
        assert len(matches) == 3


def test_terms_in_a_recording_are_found_where_they_were_said(retriever, recording):
    pcm, said = recording
    matches = retriever.search(pcm, sampling_rate=16_000, threshold=0.7)
    assert sorted(match.term for match in matches) == ["atrial fibrillation", "saxophone"]
    for match in matches:
        assert max(overlap(match, start, end) for term, start, end in said if term == match.term) > 0.7


@pytest.mark.parametrize("block", [160, 16_000, 100_000])
def test_a_stream_tells_every_utterance_once_with_times_from_its_start(retriever, recording, block):
    pcm, said = recording
    blocks = [pcm[first : first + block] for first in range(0, len(pcm), block)]
    matches = list(retriever.stream(blocks, threshold=0.7))
    assert [match.term for match in matches] == [term for term, _, _ in said]
    for match, (_, start, end) in zip(matches, said, strict=True):
        assert overlap(match, start, end) > 0.7


def test_a_stream_answers_before_it_ends(retriever, recording):
    pcm, said = recording
    fed = []

    def microphone():
        for first in range(0, len(pcm), 1600):
            fed.append(first)
            yield pcm[first : first + 1600]

    next(retriever.stream(microphone(), threshold=0.7, hop_seconds=1.0))
    assert fed[-1] / 16_000 < said[0][2] + 1.0 + 0.7 + 0.2


def test_a_clip_too_long_to_be_heard_as_a_whole_is_named(listening_model, tmp_path):
    soundfile.write(tmp_path / "lecture.wav", np.full(31 * 16_000, 100, np.int16), 16_000)
    retriever = TermRetriever(listening_model, windows="clip")
    retriever.index(TERMS)
    with pytest.raises(ValueError, match=r"lecture\.wav lasts 31\.0 s; the audio tower takes at most 30 s"):
        retriever.search_batch([(SECOND + 7, 16_000), tmp_path / "lecture.wav"])


def test_a_threshold_that_no_cosine_can_reach_is_refused(retriever, say):
    with pytest.raises(ValueError, match="threshold is 7; scores are cosines"):
        retriever.search((say("saxophone"), 16_000), threshold=7)


def test_a_stream_without_a_threshold_is_refused_at_once(retriever):
    with pytest.raises(ValueError, match="needs a threshold"):
        retriever.stream([SECOND])


def test_any_rate_channels_and_kind_of_clip_gives_the_same_answer(retriever, say, tmp_path):
    pcm = say("pneumonia")
    stereo = np.stack([soxr.resample(pcm / 32768.0, 16_000, 44_100)] * 2, axis=1).astype(np.float32)
    soundfile.write(tmp_path / "mono.wav", pcm, 16_000)
    soundfile.write(tmp_path / "stereo.flac", stereo, 44_100)
    clips = [
        str(tmp_path / "mono.wav"),
        tmp_path / "stereo.flac",
        (tmp_path / "mono.wav").read_bytes(),
        (pcm, 16_000),
        (stereo, 44_100),
        {"array": pcm / 32768.0, "sampling_rate": 16_000},
        {"audio": {"array": pcm / np.float32(32768), "sampling_rate": 16_000}, "key": "a row"},
    ]
    for matches in retriever.search_batch(clips, top_k=1):
        assert matches[0].term == "pneumonia"
        assert matches[0].score > 0.9


def test_a_batch_gives_what_single_searches_give(retriever, say, recording):
    clips = [(say(term), 16_000) for term in TERMS] + [(recording[0], 16_000)]
    together = retriever.search_batch(clips, top_k=2, batch_size=3)
    alone = [retriever.search(clip, top_k=2) for clip in clips]
    for matches, expected in zip(together, alone, strict=True):
        assert [match.term for match in matches] == [match.term for match in expected]
        assert [match.score for match in matches] == pytest.approx([match.score for match in expected], abs=1e-4)


def test_the_bar_counts_the_chunks_of_long_recordings_and_comes_to_its_end(retriever, recording, say, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def drawn(**settings):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            patch.setattr(encoding, "_BAR_AFTER_SECONDS", 0.0)
            patch.setattr(encoding, "_CHUNKS_AT_ONCE", 2)
            patch.delenv("LINES", raising=False)  # tqdm 4.66 draws as wide a bar as a test runner says
            retriever.search_batch(clips, **settings)
        return terminal.getvalue()

    clips = [(recording[0], 16_000), *[(say(term), 16_000) for term in TERMS[:4]]]
    num_chunks = len(list(retriever.encoder.cut(clips)))
    assert num_chunks > len(clips)
    assert f"searching: 100%|##########| {num_chunks}/{num_chunks} " in drawn()
    assert drawn(show_progress=False) == ""


def test_a_loaded_model_has_no_revision(listening_model):
    with pytest.raises(ValueError, match="revision='best' is of a model on the Hub, but a loaded model was given"):
        TermRetriever.from_pretrained(listening_model, revision="best")


def test_a_long_recording_is_scored_window_by_window_exactly_once(listening_model, recording):
    encoder = encoding.ClipEncoder(listening_model)
    pcm = recording[0]
    assert len(pcm) > encoding.CHUNK_SECONDS * 16_000
    windows = encoder.encode([pcm], sampling_rate=16_000)
    num_frames = int(listening_model.audio_tower.num_frames(torch.tensor([len(pcm)]))[0])
    _, start, end = window_grid([num_frames], encoder.sizes, encoder.stride)
    expected = sorted(zip((start / 50).tolist(), (end / 50).tolist(), strict=True))
    np.testing.assert_allclose(sorted(windows.spans[0].tolist()), expected, atol=1e-5)
    torch.testing.assert_close(windows.vectors.norm(dim=2), torch.ones(1, len(expected)))


def test_a_model_with_windows_of_its_own_is_searched_with_them(listening_model):
    encoder = encoding.ClipEncoder(listening_model, windows={"sizes": [40, 20], "stride": 10})
    windows = encoder.encode([SECOND[:12_800] + 7], sampling_rate=16_000)  # 40 frames
    torch.testing.assert_close(windows.spans[0], torch.tensor([[0.0, 0.4], [0.2, 0.6], [0.4, 0.8], [0.0, 0.8]]))
    whole = encoding.ClipEncoder(listening_model, windows="clip").encode([SECOND + 7], sampling_rate=16_000)
    assert whole.spans.tolist() == [[[0.0, 1.0]]]
    with pytest.raises(ValueError, match='must be "auto"'):
        encoding.ClipEncoder(listening_model, windows="all")


def test_searching_leaves_the_model_in_the_mode_it_was_in(retriever):
    retriever.model.train()
    retriever.search(SECOND + 5, sampling_rate=16_000)
    assert retriever.model.training
    retriever.model.eval()


def test_silence_holds_no_term_and_says_so(retriever, caplog):
    with caplog.at_level(logging.WARNING):
        assert retriever.search_batch([(SECOND, 16_000), (SECOND + 9, 16_000)])[0] == []
    assert "1 of 2 clips are silent" in caplog.text
    assert list(retriever.stream([SECOND] * 3, threshold=-1.0)) == []


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((SECOND[:0], 16_000), "clip 0: holds 0 samples"),
        ((SECOND[:300], 16_000), "clip 0: 300 samples are too short"),
        ((np.array([0.1, np.nan] * 800), 16_000), "clip 0: sample 1 is NaN"),
        ((np.full(16_000, 900.0), 16_000), "clip 0: 16000 of 16000 samples lie outside"),
        ((np.zeros(16_000, np.int64), 16_000), "clip 0: an array of int64"),
        (SECOND, "clip 0: an array without its sampling rate"),
        ("nowhere/clip.wav", "nowhere/clip.wav: the file does not exist"),
        (42, "clip 0: expected a path, an array or a Clip, not int"),
    ],
)
def test_a_clip_that_cannot_be_heard_is_refused_by_name(retriever, clip, message):
    with pytest.raises(BadAudioError, match=message):
        retriever.search(clip)


def test_a_file_that_is_no_audio_is_refused_by_name(retriever, tmp_path):
    path = tmp_path / "notes.wav"
    path.write_text("not a wav file")
    with pytest.raises(BadAudioError, match=r"notes\.wav: .*cannot read it"):
        retriever.search(path)


def test_search_needs_a_glossary(listening_model):
    with pytest.raises(RuntimeError, match=r"call `\.index"):
        TermRetriever(listening_model).search(SECOND, sampling_rate=16_000)


def test_blanks_and_duplicates_of_a_glossary_are_counted(listening_model, tmp_path, caplog):
    path = tmp_path / "terms.txt"
    path.write_text("pneumonia\n\nPneumonia\n  \nsaxophone\n")
    retriever = TermRetriever(listening_model)
    with caplog.at_level(logging.INFO):
        index = retriever.index(path)
    assert [term.text for term in index.terms] == ["pneumonia", "saxophone"]
    assert "2 terms, 2 blank and 1 repeated entries left out" in caplog.text


def test_terms_are_added_and_removed_while_searching(retriever, say):
    helicopter = (say("helicopter"), 16_000)
    assert retriever.search(helicopter, top_k=1)[0].term != "helicopter"
    assert retriever.add_terms(["helicopter", "Pneumonia"]) == 1
    assert retriever.search(helicopter, top_k=1)[0].term == "helicopter"
    assert retriever.remove_terms(["helicopter"]) == 1
    assert retriever.search(helicopter, top_k=1)[0].term != "helicopter"


def test_a_saved_index_and_model_answer_as_before(retriever, say, tmp_path):
    clip = (say("kubernetes"), 16_000)
    before = retriever.search(clip)
    retriever.save_index(tmp_path / "index")
    retriever.threshold = 0.25
    retriever.model.save_pretrained(tmp_path / "model")
    again = TermRetriever.from_pretrained(tmp_path / "model", device="cpu")
    again.load_index(tmp_path / "index")
    assert again.threshold == 0.25
    assert again.search(clip, threshold=-1.0) == before

    with torch.no_grad():
        again.model.audio_head.weight.mul_(1.5)
    with pytest.raises(TermIndexError, match="another model"):
        again.load_index(tmp_path / "index")


def test_a_calibrated_threshold_is_the_default_and_keeps_what_was_not_said_out(retriever, say):
    def row(text, terms):
        return {"audio": (say(text), 16_000), "text": text, "terms": terms}

    no_terms = [row(text, []) for text in ("good morning to you", "helicopter", "the weather is fine")]
    calibration = calibrate(retriever, [row(term, [term]) for term in TERMS] + no_terms, top_k=3)
    assert calibration.f1 > 0.9
    assert retriever.threshold == calibration.threshold
    assert [match.term for match in retriever.search((say("saxophone", speed=1.1), 16_000))] == ["saxophone"]
    assert retriever.search((say("helicopter", speed=1.1), 16_000)) == []
    assert len(retriever.search((say("helicopter"), 16_000), threshold=-1.0, top_k=4)) == 4


def test_terms_added_by_four_threads_are_all_there_with_their_own_vectors(retriever, say):
    clip = (say("saxophone"), 16_000)
    added = {own: [[f"{word} {'abcd'[own] * 3} {'ghij'[n % 4]}{'klmnopqrst'[n // 4]}" for word in ("red", "big", "old")]
                   for n in range(40)] for own in range(4)}  # fmt: skip
    errors, found = [], []

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    def add(own):
        for terms in added[own]:
            assert retriever.add_terms(terms) == 3
            if own == 0:
                assert retriever.remove_terms(terms[:1]) == 1

    def search():
        while any(thread.is_alive() for thread in writers):
            found.append(retriever.search(clip, top_k=1)[0].term)

    writers = [threading.Thread(target=guarded, args=(lambda own=own: add(own),)) for own in range(4)]
    searchers = [threading.Thread(target=guarded, args=(search,)) for _ in range(2)]
    for thread in (*writers, *searchers):
        thread.start()
    for thread in (*writers, *searchers):
        thread.join(timeout=120)
    assert errors == []
    assert found
    assert set(found) == {"saxophone"}
    gone = {terms[0] for terms in added[0]}
    expected = {*TERMS, *(term for own in added.values() for terms in own for term in terms)} - gone
    index = retriever.term_index
    assert sorted(term.text for term in index.terms) == sorted(expected)
    alone = retriever.model.encode_terms([term.text for term in index.terms])
    torch.testing.assert_close(index.vectors_ND, alone, rtol=0, atol=1e-5)


def test_glossaries_share_one_loaded_model(retriever, say):
    other = retriever.with_glossary(["trombone", "saxophone quartet"])
    assert other.model is retriever.model
    assert [term.text for term in other.term_index.terms] == ["trombone", "saxophone quartet"]
    assert [term.text for term in retriever.term_index.terms] == TERMS
    assert retriever.search((say("pneumonia"), 16_000), top_k=1)[0].term == "pneumonia"


def test_an_index_made_in_a_folder_is_the_one_made_in_memory(retriever, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(embedding, "STRETCH_TERMS", 2)
    monkeypatch.setattr(indexer, "STRETCH_TERMS", 2)
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    in_memory = retriever.term_index
    with caplog.at_level(logging.INFO):
        in_folder = retriever.index_to(tmp_path / "index", TERMS)
    assert retriever.term_index is in_folder
    assert in_folder.terms == in_memory.terms
    torch.testing.assert_close(in_folder.vectors_ND, in_memory.vectors_ND, rtol=0, atol=1e-6)
    # Without a terminal, the log says how far it is.
    assert "encoding terms: 2 of 5 term" in caplog.text
    with pytest.raises(FileExistsError, match="overwrite=True"):
        retriever.index_to(tmp_path / "index", TERMS)
