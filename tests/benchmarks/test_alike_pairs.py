"""Pairs of a clip and a term: which wrong terms are near, how pairs are scored, and LibriPhrase as it is laid out."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.real_speech.__main__ import main
from benchmarks.real_speech.alike.libriphrase import read_libriphrase
from benchmarks.real_speech.alike.pairs import ScoredClip, pairs_of_set, split_numbers, wrong_terms
from benchmarks.real_speech.alike.program import PairedSet, score_sets, scorers_of
from benchmarks.real_speech.alike.report import write_report
from benchmarks.real_speech.alike.scorers import CosineScorer, SoundScorer, TranscriptScorer, VerifierScorer
from benchmarks.real_speech.baselines import FuzzyMatcher
from benchmarks.real_speech.judged_sets import TEST_SETS
from qwen_term_retrieval.errors import CorpusError, VerifierError
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.text.phonetics import get_phonemizer
from qwen_term_retrieval.verification.evidence import FEATURES
from qwen_term_retrieval.verification.verifier import BELIEFS, Verifier
from tests.doubles.tiny_trainer import tiny_model

POOL = ["seventeen", "sixteen", "sixty", "six teens", "whiskey", "atrium", "pneumonia", "helicopter", "sexton", "flour"]
SILENCE = np.zeros(8_000, np.int16)


def test_near_terms_are_nearest_in_sound_and_never_the_term_itself_or_its_homophone():
    phonemizer = get_phonemizer("espeak:en-us")
    near, far = wrong_terms(["Sixteen", "flower"], [*POOL, "flower", "floor"], phonemizer)[0]
    assert near[0] in {"sixty", "six teens", "seventeen"}
    assert "sixteen" not in near
    assert set(far) <= {"whiskey", "atrium", "pneumonia", "helicopter", "flour", "flower", "floor"}
    near, _ = wrong_terms(["flower"], [*POOL, "flower", "floor"], phonemizer)[0]
    assert near[0] == "floor"  # "flour" sounds the same
    near, _ = wrong_terms(["flower bed"], [*POOL, "flower", "flour bread"], phonemizer)[0]
    assert near[0] == "flour bread"
    assert "flower" not in near  # it is said
    assert wrong_terms(["flower"], POOL, phonemizer) == wrong_terms(["flower"], POOL, phonemizer)


def clip(key: str, **kinds: list[str]) -> ScoredClip:
    pairs = [(term, kind) for kind, terms in kinds.items() for term in terms]
    return ScoredClip(key, SILENCE, "someone", *zip(*pairs, strict=True))


def test_each_split_has_all_positives_and_its_own_negatives():
    clips = [clip("a", own=["x"], hard=["y"], easy=["z"]), clip("b", own=["x"], hard=["y"], easy=["z"])]
    found = split_numbers(clips, [np.array([0.9, 0.8, 0.1]), np.array([0.7, 0.2, 0.1])])
    assert found["easy"] == {"auc": 1, "eer": 0, "positives": 2, "negatives": 2}
    assert found["hard"] == {"auc": 0.75, "eer": 0.5, "positives": 2, "negatives": 2}
    assert set(split_numbers([clip("a", own=["x"], easy=["z"])], [np.array([1, 0])])) == {"easy"}


def test_a_transcript_scores_terms_by_their_likeness_to_it():
    scorer = TranscriptScorer(lambda pcm: "pneumonya", FuzzyMatcher, "Levenshtein")
    scores = scorer(SILENCE, ["pneumonia", "atrium"])
    assert scores.shape == (2,)
    assert scores[0] > 0.8 > scores[1]


def test_a_model_scores_a_clip_by_the_window_that_is_nearest(listening_model, say):
    retriever = TermRetriever(listening_model)
    scorer = CosineScorer(retriever)
    pcm = say("the helicopter came late")
    terms = ["helicopter", "saxophone", "penicillin"]
    retriever.index(terms, show_progress=False)
    # As the search scores them, which has one index for all clips.
    matches = {match.term: match.score for match in retriever.nearest_batch([pcm], top_k=3, sampling_rate=16_000)[0]}
    assert scorer(pcm, terms).tolist() == pytest.approx([matches[term] for term in terms], abs=1e-5)
    assert scorer(SILENCE, terms).tolist() == [-1, -1, -1]
    spoken = PairedSet("espeak", [ScoredClip("a", pcm, "espeak", tuple(terms), ("own", "hard", "easy"))])
    assert score_sets({"spoken": spoken}, scorer, "ours")["spoken"]["hard"]["auc"] == 1


@pytest.fixture(scope="module")
def hearing_model():
    """It hears sounds, though untrained."""
    model = tiny_model(windows={"sizes": [10, 20], "stride": 5})
    model.add_phoneme_head()
    return model.eval()


NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 16_000).astype(np.int16)


def test_a_clip_is_scored_by_the_sounds_of_a_term_as_ctc_has_it(hearing_model):
    scorer, terms = SoundScorer(TermRetriever(hearing_model)), ["atrium", "sixteen"]
    log_probs_UC = scorer.hear(NOISE)
    for term, score in zip(terms, scorer(NOISE, terms), strict=True):
        ((said,),) = hearing_model.phoneme_head.alphabet.pronunciations([term])
        loss = torch.nn.functional.ctc_loss(
            log_probs_UC[:, None], torch.from_numpy(said).long()[None], (len(log_probs_UC),), (len(said),),
            reduction="sum",
        )  # fmt: skip
        assert score == pytest.approx(-float(loss) / len(term), abs=1e-4)


def test_terms_without_a_sound_and_silent_clips_are_never_the_ones_said(hearing_model):
    scorer = SoundScorer(TermRetriever(hearing_model))
    assert scorer(SILENCE, ["atrium", "sixteen"]).tolist() == [-100, -100]
    assert scorer(NOISE, ["?!"]).tolist() == [-100]
    mute, said = scorer(NOISE, ["?!", "atrium"])
    assert mute == -100 < said


def test_a_verifier_scores_a_pair_by_its_strength(hearing_model):
    with pytest.raises(VerifierError, match="qtr calibrate"):
        VerifierScorer(TermRetriever(hearing_model))
    assert list(scorers_of(TermRetriever(hearing_model))) == ["ours", "ours by sounds"]
    retriever, terms = TermRetriever(hearing_model, verify="none"), ["atrium", "sixteen"]
    weights = dict.fromkeys(FEATURES, 0.0)
    cosines = CosineScorer(retriever)(NOISE, terms)
    retriever.verifier = Verifier(weights | {"cosine": 2.0}, dict.fromkeys(BELIEFS, 0.0))
    assert VerifierScorer(retriever)(NOISE, terms).tolist() == pytest.approx((2 * cosines).tolist(), abs=1e-5)
    retriever.verifier = Verifier(weights | {"sounds": 1.0}, dict.fromkeys(BELIEFS, 0.0))
    assert VerifierScorer(retriever)(NOISE, terms).tolist() == [6, 7]
    assert VerifierScorer(retriever)(SILENCE, terms).tolist() == [-100, -100]
    assert list(scorers_of(retriever)) == ["ours", "ours by sounds", "ours verified"]


def test_the_volunteers_words_have_pairs_of_every_kind():
    try:
        clips = pairs_of_set(TEST_SETS["ktuberling"], get_phonemizer("espeak:en-us"))
    except PackageError as error:
        pytest.skip(f"the packages cannot be had: {error}")
    assert len(clips) == 72
    assert {each.kinds for each in clips} == {("own", "hard", "hard", "hard", "easy", "easy", "easy")}
    umbrella = next(each for each in clips if each.terms[0] == "umbrella")
    assert len(umbrella.pcm()) > 8_000


COLUMNS = (
    *("anchor", "anchor_spk", "anchor_text", "anchor_dur"),
    *("comparison", "comparison_spk", "comparison_text", "comparison_dur"),
    *("type", "target", "class"),
)


def libriphrase(folder, rows, *, missing=()):
    """A folder as the recipe writes it: `rows` are (anchor text, comparison, its speaker, its text, type, target)."""
    recordings = folder / "train-other-500" / "train-other-500" / "985" / "126224"
    recordings.mkdir(parents=True)
    with (folder / "libriphrase_diffspk_all_1word.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for text, name, speaker, said, kind, target in rows:
            path = recordings / name
            relative = path.relative_to(folder).as_posix()
            writer.writerow(["anchor.wav", 1, text, 0.5, relative, speaker, said, 0.5, kind, target, 1])
            if name not in missing:
                soundfile.write(path, np.zeros(8_000), 16_000)
    return folder


ROWS = [
    ("friend", "985-0_1word_0.wav", 985, "friend", "diffspk_positive", 1),
    ("frind", "985-0_1word_0.wav", 985, "friend", "diffspk_hardneg", 0),
    ("guard", "985-0_1word_0.wav", 985, "friend", "diffspk_easyneg", 0),
    ("null", "1006-1_1word_0.wav", 1006, "null", "diffspk_positive", 1),
]


def test_libriphrase_is_read_from_the_files_of_its_recipe(tmp_path):
    first, second = read_libriphrase(libriphrase(tmp_path, ROWS))
    assert dict(zip(first.terms, first.kinds, strict=True)) == {"friend": "own", "frind": "hard", "guard": "easy"}
    assert (second.terms, second.kinds, second.speaker) == (("null",), ("own",), "1006")
    assert len(first.pcm()) == 8_000
    found = split_numbers([first, second], [np.array([0.9, 0.2, 0.1]), np.array([0.8])])
    assert (found["hard"]["positives"], found["hard"]["negatives"]) == (2, 1)


def test_what_libriphrase_lacks_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no file .*_1word.csv: .*openslr.org/12, CC BY"):
        read_libriphrase(tmp_path)
    folder = libriphrase(tmp_path, ROWS, missing={"1006-1_1word_0.wav"})
    with pytest.raises(FileNotFoundError, match=r"1word.csv, line 5: .*1006-1_1word_0.wav does not exist.* \(MIT\)"):
        read_libriphrase(folder)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("friend", "a_0.wav", 985, "x", "diffspk_hardneg", 1), "target '1' of type 'diffspk_hardneg'"),
        (("", "a_0.wav", 985, "x", "diffspk_hardneg", 0), "line 2: no 'anchor_text'"),
    ],
)
def test_a_row_of_libriphrase_that_means_nothing_is_named(tmp_path, row, reason):
    with pytest.raises(CorpusError, match=reason):
        read_libriphrase(libriphrase(tmp_path, [row]))


def test_the_report_names_clips_pairs_and_speakers(tmp_path):
    clips = [clip("a", own=["x"], hard=["y"], easy=["z"])]
    numbers = {"studio": split_numbers(clips, [np.array([0.9, 0.95, 0.1])])}
    text = write_report(
        tmp_path,
        "alike",
        systems={"alike ours": {"numbers": numbers}},
        facts={"studio": PairedSet("one speaker", clips).facts()},
    )
    assert "**studio: one speaker** (n = 1 clips, 3 pairs)" in text
    assert "| ours, cosine | easy | 1 | 1 | 1.0000 | 0.0% |" in text
    assert "|  | hard | 1 | 1 | 0.0000 | 100.0% |" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--test-set", "libriphrase", "--stage", "report"], "give --corpus: the folder of libriphrase"),
        (["--test-set", "alike", "--stage", "timing"], "alike has no stage timing; it has baselines, model, report"),
        (["--test-set", "long"], "give --model"),
    ],
)
def test_a_set_is_refused_what_it_lacks_before_anything_runs(tmp_path, capsys, arguments, reason):
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path), *arguments])
    assert reason in capsys.readouterr().err


def test_libriphrase_runs_from_the_command_line(tmp_path, capsys, hearing_model):
    folder = libriphrase(tmp_path / "corpus", ROWS)
    hearing_model.save_pretrained(tmp_path / "model")
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    which = ["--test-set", "libriphrase", "--corpus", str(folder), "--model", str(tmp_path / "model")]
    assert main([*which, *places, "--stage", "model", "--stage", "report"]) == 0
    # Silence scores the same for every term.
    shown = capsys.readouterr().out
    for system in ("ours, cosine", "ours, sounds alone"):
        assert f"| {system} | easy | 2 | 1 | 0.5000 | 50.0% |" in shown
    assert (tmp_path / "results" / "real_speech_libriphrase.json").is_file()
