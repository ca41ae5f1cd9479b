"""`qtr explain`: a row for each sound, what a search makes of it, a picture, and one line for what cannot be."""

import re

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.verification.evidence import FEATURES
from qwen_term_retrieval.verification.verifier import BELIEFS, Verifier
from tests.doubles.tiny_trainer import tiny_model


def qtr(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Untrained models without a head, with one, and with a verifier; a clip, a click and a glossary."""
    folder = tmp_path_factory.mktemp("explain")
    model = tiny_model(windows={"sizes": [10, 20], "stride": 5})
    model.save_pretrained(folder / "without")
    model.add_phoneme_head()
    model.save_pretrained(folder / "model")
    weights = dict.fromkeys(FEATURES, 0.0) | {"fit": 0.1, "cosine": 1.0}
    model.config.verifier = Verifier(weights, dict.fromkeys(BELIEFS, 0.1)).to_dict()
    model.save_pretrained(folder / "verified")
    noise = np.random.default_rng(0).integers(-9_000, 9_000, 32_000).astype(np.int16)
    soundfile.write(folder / "clip.wav", noise, 16_000)
    soundfile.write(folder / "click.wav", noise[:100], 16_000)
    (folder / "terms.txt").write_text("sixty\natrium\n")
    return folder


def test_every_sound_of_a_term_has_a_row_with_its_time_and_score(places):
    result = qtr("explain", places / "model", places / "clip.wav", "sixteen", "--quiet")
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^([a-z]) +(\d\.\d\d) +(\d\.\d\d) +(-?\d+\.\d)  \S", result.stdout, re.MULTILINE)
    assert "".join(row[0] for row in rows) == "sixteen"
    ends = [float(row[2]) for row in rows]
    assert ends == sorted(ends)
    assert all(float(start) < float(end) <= 2 and float(score) <= 0 for _, start, end, score in rows)
    assert re.search(r"^fit -\d+\.\d\d, -\d+\.\d\d a sound; worst: \S.* -?\d", result.stdout, re.MULTILINE)
    assert "cosine" in result.stdout
    assert "probability" not in result.stdout
    assert "claimed" not in result.stdout


def test_with_a_verifier_and_a_glossary_there_are_probabilities_and_rivals(places, tmp_path):
    picture = tmp_path / "new" / "sixteen.png"
    asked = ("explain", places / "verified", places / "clip.wav", "sixteen", "--glossary", places / "terms.txt")
    result = qtr(*asked, "--output", picture, "--quiet")
    assert result.exit_code == 0, result.output
    assert re.search(r"^probability 0\.\d{3} alone$", result.stdout, re.MULTILINE)
    assert re.search(r"^probability 0\.\d{3} among 3 terms$", result.stdout, re.MULTILINE)
    assert "the same place is claimed by: " in result.stdout
    assert result.stdout.splitlines()[-1] == str(picture)
    assert imread(picture).shape == (396, 880, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("without", "clip.wav", "sixteen"), "no phoneme head.*scripts/train.py --recipe phoneme_head"),
        (("model", "clip.wav", "?!"), r"'\?!' has no sound that the phoneme head knows"),
        (("model", "click.wav", "sixteen"), "click.wav: 100 samples are too short to hear a term in"),
        (("model", "none.wav", "sixteen"), "none.wav"),
        (("nowhere", "clip.wav", "sixteen", "--output", "."), "is a folder; give the name of a file"),
        (("nowhere", "clip.wav", "sixteen", "--glossary", "none.txt"), "none.txt does not exist"),
    ],
)
def test_what_cannot_be_explained_is_one_line(places, arguments, message):
    shown = [each if each in {"sixteen", "?!"} or each.startswith("--") else places / each for each in arguments]
    result = qtr("explain", *shown, "--quiet")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)
    assert "Traceback" not in result.output


def test_the_help_teaches_how_to_read_a_row():
    shown = " ".join(qtr("explain", "--help").stdout.split())
    assert "One bad row is a near twin" in shown
    assert "--glossary" in shown
