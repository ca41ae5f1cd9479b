"""Terms inside longer speech: what is a term, what is said where, and which answers are right."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from benchmarks.real_speech.baselines import FuzzyMatcher
from benchmarks.real_speech.long.content_terms import STOP_WORDS, content_terms, terms_in
from benchmarks.real_speech.long.earnings22 import earnings22_set
from benchmarks.real_speech.long.forced_times import ForcedTimes, with_times
from benchmarks.real_speech.long.judging import NEVER_ANSWERED, judge, numbers
from benchmarks.real_speech.long.program import Assembled, accept_all, hear, hear_streams, search_transcripts
from benchmarks.real_speech.long.prompts import PAUSE_SECONDS, join, long_banks, long_sets
from benchmarks.real_speech.long.recordings import Place, Recording, SearchedSet
from benchmarks.real_speech.long.report import write_report
from benchmarks.real_speech.long.transcript_search import best_scores, runs_of_words
from benchmarks.real_speech.spelling import letters_of
from qwen_term_retrieval.errors import BadAudioError, CorpusError
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.text.spellings import spoken_spellings, term_id
from qwen_term_retrieval.verification.evidence import FEATURES
from qwen_term_retrieval.verification.verifier import BELIEFS, Verifier
from tests.doubles.tiny_trainer import tiny_model

RATE = 16_000


def match(term: str, score: float, start: float = 0.0, end: float = 1.0) -> TermMatch:
    return TermMatch(term, score, start, end, term_id(term))


def recording(*places: Place, seconds: float = 10.0) -> Recording:
    return Recording("r", np.zeros(round(seconds * RATE), np.int16), places, "someone")


def test_a_term_is_a_run_of_content_words_that_no_pause_and_no_stop_word_interrupts():
    assert content_terms(["Please enter the pin, then press 2 or #"]) == [
        "enter",
        "pin",
        "please",
        "please enter",
        "pound",
        "press",
        "press two",
        "two",
    ]
    assert not {word for word in STOP_WORDS if content_terms([word])}
    assert max(len(term.split()) for term in content_terms(["one two three four five six"])) == 4
    assert content_terms(["folder re-enter", "Folder"]) == [
        "enter",
        "folder",
        "folder re",
        "folder re enter",
        "re",
        "re enter",
    ]


def test_a_term_is_said_in_a_clip_whatever_stands_around_it():
    assert terms_in("Press 2, Folder!", frozenset({"folder", "two folder", "old"})) == ("two folder", "folder")


def test_clips_are_joined_whole_in_an_order_that_a_seed_makes():
    clips = [
        Recording(str(row), np.full(RATE * 2, row + 1, np.int16), (Place(0, 2, f"text {row}"),), "x")
        for row in range(12)
    ]
    joined = join(clips, seconds=10, seed=3)
    places = [(each, place) for each in joined for place in each.places]
    assert sorted(place.text for _, place in places) == sorted(f"text {row}" for row in range(12))
    for each, place in places:
        # The very samples, so that a transcript made of the clip is one of the place.
        assert set(each.pcm_of(place).tolist()) == {int(place.text.split()[1]) + 1}
        assert len(each.pcm_of(place)) == 2 * RATE
    for each in joined:
        edges = [0.0, *(edge for place in each.places for edge in (place.start, place.end)), each.seconds]
        pauses = np.diff(edges)[::2]
        assert ((pauses > PAUSE_SECONDS[0] - 0.01) & (pauses < PAUSE_SECONDS[1])).all()
    assert all(each.seconds >= 10 for each in joined[:-1])
    again = join(clips, seconds=10, seed=3)
    assert all((one.pcm == other.pcm).all() for one, other in zip(joined, again, strict=True))
    assert [place.text for place in join(clips, seed=4)[0].places] != [
        place.text for place in join(clips, seed=3)[0].places
    ]


def test_the_prompts_are_a_set_whose_distractors_nobody_says():
    try:
        (alone, joined), glossary = long_sets()
    except PackageError as error:
        pytest.skip(f"the packages cannot be had: {error}")
    facts = alone.facts()
    assert (facts["clips"], facts["clips with a term"], facts["speakers"]) == (207, 207, 1)
    assert joined.facts()["terms said"] == facts["terms said"]
    assert {term for place in joined.places for term in place.terms} == set(glossary)
    assert all(600 <= each.seconds < 632 for each in joined.recordings[:-1])
    banks = long_banks(glossary[:20], [place.text for place in joined.places])
    said = {letters_of(run) for place in joined.places for run in spoken_spellings(place.text, max_words=8)}
    assert [len(banks.rows[name]) for name in ("own", "+10k", "+100k")] == [20, 10_020, 100_020]
    assert not {letters_of(term) for term in banks.terms[banks.num_own :]} & said


def test_an_answer_is_right_in_the_place_where_its_term_is_said_and_counts_once():
    here = recording(
        Place(1, 3, "hold the folder", ("folder",), {"folder": (2.0, 2.5)}),
        Place(5, 7, "a full folder of mail", ("folder", "mail")),
    )
    answers = [
        match("folder", 0.7, 1.8, 2.3),
        match("folder", 0.9, 2.1, 2.5),  # the same once more, and surer
        match("full", 0.8, 5.0, 5.5),  # said, and not listed: neither right nor wrong
        match("full-folder", 0.8, 5.0, 5.5),  # so are these words, however they are written
        match("fullfolder", 0.8, 5.0, 5.5),
        match("folder", 0.6, 3.5, 4.0),  # in the pause
        match("mail", 0.5, 1.5, 2.0),  # said elsewhere
        match("mail", 0.4, 6.0, 6.5),
        match("male", 0.45, 6.0, 6.5),
        match("male", 0.41, 5.0, 5.5),
    ]
    judged = judge([here], [answers])
    pairs = sorted(zip(judged.answers.scores.tolist(), judged.answers.right.tolist(), strict=True), reverse=True)
    assert pairs == [(0.9, True), (0.6, False), (0.5, False), (0.45, False), (0.41, False), (0.4, True)]
    assert judged.answers.num_gold == 3
    # Found first; never answered in its second place; behind one wrong term, however often that was answered.
    assert judged.ranks.tolist() == [1, NEVER_ANSWERED, 2]
    assert judged.span_errors.tolist() == pytest.approx([0.05])


def test_a_wrong_term_as_sure_as_the_right_one_stands_before_it():
    judged = judge([recording(Place(0, 2, "folder", ("folder",)))], [[match("folder", 0.5), match("older", 0.5)]])
    assert judged.ranks.tolist() == [2]


def test_the_probability_of_a_match_goes_before_its_score():
    unsure, sure = (replace(match("folder", score), probability=p) for score, p in ((0.9, 0.2), (0.3, 0.8)))
    assert judge([recording(Place(0, 2, "folder", ("folder",)))], [[unsure, sure]]).answers.scores.tolist() == [0.8]


def test_numbers_have_span_errors_only_where_times_are_known():
    known = SearchedSet("alone", "x", [recording(Place(0, 2, "folder", ("folder",), {"folder": (0.0, 0.5)}))])
    unknown = SearchedSet("alone", "x", [recording(Place(0, 2, "folder", ("folder",)))])
    answers = [[match("folder", 0.5, 0.1, 0.6), match("male", 0.6)]]
    assert numbers(known, answers, None)["span_error"] == pytest.approx(0.1)
    found = numbers(unknown, answers, threshold=0.55)
    assert "span_error" not in found
    assert (found["precision"], found["false_alarms_per_minute"]) == (0, pytest.approx(6))
    assert (found["average_precision"], found["recall@10"]) == (0.5, 1)


def test_a_transcript_is_searched_by_its_runs_of_words():
    assert runs_of_words("a 2 c d e f")[:5] == ["a", "a two", "a two c", "a two c d", "a two c d e"]
    assert runs_of_words("…") == [""]
    terms = ["atrial fibrillation", "folder two", "mail"]
    matcher = FuzzyMatcher(terms)
    scores = best_scores(matcher, terms, ["He has atrial fibrilation.", "the folder 2, please", ""], "Levenshtein")
    assert scores[0, 0] > 0.9 > scores[0, 1:].max()
    assert scores[1].argmax() == 1
    # The best run of each transcript, and nothing but that.
    runs = runs_of_words("the folder 2, please")
    assert scores[1].tolist() == pytest.approx(matcher.scores(runs, "Levenshtein").max(axis=0).tolist(), abs=1e-3)


def test_of_terms_that_a_transcript_holds_word_for_word_the_longer_is_surer():
    terms = ["folder", "folder two", "two"]
    (scores,) = best_scores(FuzzyMatcher(terms), terms, ["the folder 2"], "Levenshtein")
    assert scores[1] > scores[0] > scores[2] > 1


def test_a_search_of_transcripts_is_judged_as_any_other(tmp_path):
    searched = SearchedSet(
        "joined", "two clips", [recording(Place(1, 3, "the folder", ("folder",)), Place(5, 7, "some mail"))]
    )
    banks = long_banks_of(["folder", "atrium"])
    scores = best_scores(FuzzyMatcher(banks.terms), banks.terms, ["a folder", "sum male"], "Levenshtein")
    answers = search_transcripts(searched, scores, banks.terms)
    assert [(each.term, each.start) for each in answers[0][:1]] == [("folder", 1)]
    assembled = Assembled([searched], banks)
    found = {"own": numbers(searched, answers, None)}
    text = write_report(
        tmp_path,
        "long",
        systems={"spotting fuzzy": {"measure": "Levenshtein", "measures": {}, "numbers": {"joined": found}}},
        facts=assembled.facts(),
        bank_sizes={"own": 2},
    )
    assert "n = 1 terms said in 1 of 2 clips, 1 recordings, 0.17 min, speakers: 1" in text
    assert "| Whisper-base → spelling of runs of words | own (2) | 1.000 [1.00, 1.00] |" in text
    assert {path.name for path in tmp_path.iterdir()} == {"real_speech_long.json", "real_speech_long.md"}


def long_banks_of(terms):
    from benchmarks.real_speech.term_banks import TermBanks

    return TermBanks(terms, {"own": np.arange(len(terms))}, len(terms))


def test_a_model_hears_terms_in_clips_and_in_streams_of_them(listening_model, say):
    texts = ["we speak of photosynthesis today", "the helicopter came late", "nothing of the kind was said"]
    known = frozenset({"photosynthesis", "helicopter"})
    clips = []
    for text in texts:
        pcm = say(text)
        clips.append(Recording(text, pcm, (Place(0, len(pcm) / RATE, text, terms_in(text, known)),), "espeak"))
    retriever = TermRetriever(listening_model)
    index = retriever.index(["photosynthesis", "helicopter", "saxophone", "penicillin"], show_progress=False)
    alone = SearchedSet("alone", "clips", clips)
    for answers in hear(retriever, [index, index.select([0, 1])], alone):
        assert numbers(alone, answers, None)["average_precision"] == 1
    joined = SearchedSet("joined", "stream", join(clips), joined=True)
    found = numbers(joined, hear_streams(retriever, joined.recordings), None)
    assert found["recall@1_false_alarm_per_minute"] == 1


@pytest.fixture(scope="module")
def hearing_model():
    """It hears sounds, though untrained."""
    model = tiny_model(windows={"sizes": [10, 20], "stride": 5})
    model.add_phoneme_head()
    return model.eval()


def hearing(head, sounds, frames_a_sound=4):
    """Log-probabilities of a head that hears these letters one after another, each at the start of its frames."""
    probs_UC = torch.full((len(sounds) * frames_a_sound, head.alphabet.num_classes), 1e-6)
    probs_UC[:, 0] = 1 - 1e-3
    for place, sound in enumerate(sounds):
        ((said,),) = head.alphabet.pronunciations([sound])
        probs_UC[place * frames_a_sound, said[0]], probs_UC[place * frames_a_sound, 0] = 1 - 1e-3, 1e-6
    return probs_UC.log()


def test_words_are_timed_by_laying_the_whole_text_over_what_was_heard(hearing_model):
    times = ForcedTimes(hearing_model)
    words = times.times_of_words(hearing(times.head, "theoldfolder"), ["the", "old", "…", "folder"])
    assert [None if span is None else pytest.approx(span) for span in words] == [
        (0.0, 0.18),
        (0.24, 0.42),
        None,
        (0.48, 0.90),
    ]
    # What was misheard is found by what stands around it.
    misheard = times.times_of_words(hearing(times.head, "theoldsolder"), ["the", "old", "folder"])
    assert misheard[2] == pytest.approx((0.48, 0.90), abs=0.05)
    assert times.times_of_words(hearing(times.head, "the"), ["the", "old", "folder", "of", "mail"]) == [None] * 5


def test_a_term_is_timed_in_its_place_unless_it_is_said_twice(hearing_model):
    times = ForcedTimes(hearing_model)
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, 4 * RATE).astype(np.int16)
    places = (Place(1, 4, "the old folder is the folder", ("folder", "old folder", "elder")),)
    (place,) = with_times(SearchedSet("a", "b", [Recording("r", pcm, places, "x")]), times).places
    assert set(place.spans) == {"old folder"}
    start, end = place.spans["old folder"]
    assert 1 <= start < end <= 4
    assert times(np.zeros(RATE, np.int16), "the folder", "folder") is None


def test_a_stream_of_a_model_that_verifies_is_asked_for_every_probability(hearing_model):
    assert accept_all(TermRetriever(hearing_model)) == -1
    retriever = TermRetriever(hearing_model)
    retriever.use_verifier(Verifier(dict.fromkeys(FEATURES, 0.0), dict.fromkeys(BELIEFS, 0.0) | {"bias": -9.0}))
    retriever.index(["folder", "old"], show_progress=False)
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, 4 * RATE).astype(np.int16)
    (heard,) = hear_streams(retriever, [Recording("r", pcm, (Place(0, 4, "old"),), "x")])
    assert heard
    assert all(match.probability < 0.01 for match in heard)
    hearing_model.config.verifier = None


@pytest.fixture
def earnings22(tmp_path):
    """A dataset of two clips as it lies on the Hub."""
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(RATE), RATE, format="WAV")
    rows = [
        {
            "audio": {"bytes": sound.getvalue(), "path": None},
            "file_id": f"44{row}",
            "audio_start": 15.0 * row,
            "text": text,
            "dictionary": spoken,
            "keywords": ["Prodege", "EBITDA", "ebitda", "Q3"],
            "transcript": text.split(),
        }
        for row, (text, spoken) in enumerate([("Our EBITDA in Q3", ["EBITDA", "Q3"]), ("Thank you", [])])
    ]
    (tmp_path / "data").mkdir()
    dataset = Dataset.from_list(rows)  # as Parquet has a column of audio
    dataset.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    return tmp_path, dataset


def test_contextual_earnings22_is_read_from_its_folder(earnings22):
    folder, _ = earnings22
    searched, glossary = earnings22_set(folder)
    assert glossary == ["EBITDA", "Q3", "Prodege"]
    assert [place.terms for place in searched.places] == [("EBITDA", "Q3"), ()]
    assert [clip.key for clip in searched.recordings] == ["440-000000.00", "441-000015.00"]
    assert searched.facts()["speakers"] == 2
    assert searched.minutes == pytest.approx(2 / 60)


def test_what_contextual_earnings22_lacks_is_named_with_where_to_get_it(earnings22, tmp_path_factory):
    folder, dataset = earnings22
    with pytest.raises(FileNotFoundError, match=r"no table .*`hf download argmaxinc/contextual-earnings22"):
        earnings22_set(tmp_path_factory.mktemp("empty"))
    table = folder / "data" / "test-00000-of-00001.parquet"
    dataset.remove_columns("dictionary").to_parquet(table)
    with pytest.raises(CorpusError, match=r"test-00000-of-00001.parquet, row .*: no column 'dictionary'"):
        earnings22_set(folder)
    table.rename(table.with_name("train-00000-of-00001.parquet"))
    with pytest.raises(FileNotFoundError, match="no split test"):
        earnings22_set(folder)


def test_a_clip_of_contextual_earnings22_that_is_no_sound_is_named(earnings22):
    folder, dataset = earnings22
    broken = dataset.to_list()
    table = folder / "data" / "test-00000-of-00001.parquet"
    for row in broken:
        row["audio"] = {"bytes": b"no sound", "path": None}
    Dataset.from_list(broken).to_parquet(table)
    with pytest.raises(BadAudioError, match=r"test-00000-of-00001.parquet"):
        earnings22_set(folder)
