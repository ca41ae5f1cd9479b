"""Each script of `examples/` does what its docstring says, run as a user runs it, on small inputs."""

import ast
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from qwen_term_retrieval import TermRetriever
from qwen_term_retrieval.models.audio_towers import AUDIO_TOWERS
from tests.doubles.tiny_trainer import TINY_TOWER

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def model(listening_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    listening_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talk(say, tmp_path_factory):
    """A folder with one recording of two terms, and a glossary that holds them."""
    folder = tmp_path_factory.mktemp("talk")
    pause = np.zeros(12_000, np.int16)
    spoken = [pause, say("pneumonia", speed=1.05), pause, say("saxophone", speed=1.05), pause]
    soundfile.write(folder / "talk.wav", np.concatenate(spoken), 16_000)
    (folder / "terms.txt").write_text("pneumonia\nsaxophone\nkubernetes\npenicillin\n")
    return folder


@pytest.fixture
def example(monkeypatch, capsys):
    """`example(name, *arguments)` runs `examples/<name>.py` and gives back what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_search_a_folder_writes_a_subtitle_each_time_a_term_is_said(example, model, talk, tmp_path):
    flags = ("--model", model, "--glossary", talk / "terms.txt", "--threshold", 0.7, "--out", tmp_path / "subtitles")
    assert "talk.wav: 2 terms" in example("search_a_folder", talk, *flags)
    subtitles = (tmp_path / "subtitles" / "talk.srt").read_text().split("\n\n")
    assert [subtitle.splitlines()[2] for subtitle in subtitles] == ["pneumonia", "saxophone"]
    assert re.fullmatch(r"00:00:00,[4-9]\d\d --> 00:00:0[12],\d{3}", subtitles[0].splitlines()[1])


def test_index_100k_terms_leaves_an_index_that_is_searched(example, model, talk, tmp_path):
    flags = ("--terms", 2000, "--model", model, "--glossary", talk / "terms.txt", "--out", tmp_path / "index")
    printed = example("index_100k_terms", *flags, "--recording", talk / "talk.wav")
    assert "2,00" in printed.splitlines()[0]
    retriever = TermRetriever.from_pretrained(model)
    assert len(retriever.load_index(tmp_path / "index")) > 2000
    assert {"pneumonia", "saxophone"} <= {term.text for term in retriever.term_index.terms}


def test_train_on_your_manifest_leaves_a_model(example, hf_home, make_corpus, tmp_path):
    WhisperEncoder(WhisperConfig.from_dict(TINY_TOWER)).save_pretrained(tmp_path / "whisper")
    manifest = make_corpus(tmp_path / "corpus", clips_per_split=30) / "train.termaudio"
    flags = ("--audio-tower", tmp_path / "whisper", "--out", tmp_path / "run", "--max-steps", 2, "--batch-size", 4)
    assert "on clips kept back" in example("train_on_your_manifest", manifest, *flags)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_custom_audio_tower_makes_its_checkpoints_known(example, talk):
    with mock.patch.dict(AUDIO_TOWERS):
        assert "VoxtralTower, 50 frames a second" in example("custom_audio_tower", talk / "talk.wav")
        assert AUDIO_TOWERS["voxtral"].__name__ == "VoxtralTower"
    assert "voxtral" not in AUDIO_TOWERS


def test_listen_hears_terms_one_after_the_other(example, model, talk):
    flags = ("--model", model, "--glossary", talk / "terms.txt", "--threshold", 0.7)
    heard = example("listen", "--file", talk / "talk.wav", *flags).splitlines()[1:]
    assert [line.split()[2] for line in heard] == ["pneumonia", "saxophone"]


def test_picture_of_a_found_term_draws_one(example, model, talk, tmp_path):
    flags = ("--model", model, "--glossary", talk / "terms.txt", "--out", tmp_path / "found.png")
    example("picture_of_a_found_term", talk / "talk.wav", *flags)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_no_example_is_without_a_test():
    assert all(f'"{path.stem}"' in Path(__file__).read_text(encoding="utf-8") for path in EXAMPLES)
