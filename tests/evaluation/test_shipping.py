"""A trained model made one that comes along: half precision on disk, its card, and how it is found by name."""

import json

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.evaluation import shipping
from qwen_term_retrieval.evaluation.shipping import recall_rows_of, ship_model
from qwen_term_retrieval.models.weights import shipped
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from tests.doubles.spoken_terms import SPOKEN_TERMS

FACTS = {
    "data": "Eleven terms.",
    "voices": "three of espeak-ng",
    "languages": ["en"],
    "licence": "apache-2.0",
    "limits": ["It knows eleven terms."],
    "seed": 0,
}
MEASURED = {
    "test_set": "ktuberling",
    "speakers": "volunteers, about two voices",
    "n": 72,
    "banks": {"+10k": 10072},
    "systems": {
        "verified": {
            "recall": {"+10k": {"R@1": 0.875, "R@10": 0.9861}},
        }
    },
    "belief": {"+10k": {"stored": {"precision": 0.97, "recall": 0.556}}},
}


@pytest.fixture(scope="module")
def trained(listening_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    listening_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    """A folder of models that came along, with one."""
    place = tmp_path_factory.mktemp("shipped")
    ship_model(trained, place / "tiny.en", FACTS, recall_rows_of([MEASURED], "verified"))
    return place


@pytest.fixture
def came_along(place, monkeypatch):
    monkeypatch.setattr(shipped, "SHIPPED", place)
    return place


def test_weights_are_halves_on_disk_and_whole_in_memory_and_answer_alike(came_along, trained, say):
    with safe_open(came_along / "tiny.en" / "model.safetensors", framework="pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert kinds == {torch.float16}
    before, after = TermRetriever.from_pretrained(trained), TermRetriever.from_pretrained()
    assert {values.dtype for values in after.model.parameters()} == {torch.float32}
    clip = say("saxophone", speed=1.05)
    found = []
    for retriever in (before, after):
        retriever.index(SPOKEN_TERMS)
        found.append(retriever.search(clip, sampling_rate=16_000, top_k=3))
    assert [match.term for match in found[0]] == [match.term for match in found[1]]
    assert found[1][0].term == "saxophone"
    assert [match.score for match in found[1]] == pytest.approx([match.score for match in found[0]], abs=2e-3)


def test_a_model_is_found_by_its_name_and_by_default(came_along):
    folder = came_along / "tiny.en"
    assert shipped.model_place(None) == shipped.model_place("default") == shipped.model_place("tiny.en") == folder
    assert shipped.model_place("me/terms") == "me/terms"
    (model,) = shipped.shipped_models()
    assert (model.name, model.base_tower, model.languages) == ("tiny.en", "openai/whisper-tiny.en", ("en",))
    assert model.num_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_without_a_model_that_came_along_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="no model came along with this installation: name one"):
        TermRetriever.from_pretrained()


def test_a_folder_of_that_name_comes_first(came_along, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.en").mkdir()
    assert shipped.model_place("tiny.en") == "tiny.en"


def test_the_card_says_what_a_user_must_know(came_along):
    card = (came_along / "tiny.en" / "README.md").read_text(encoding="utf-8")
    for line in (
        "license: apache-2.0",
        "| seed | 0 |",
        "Eleven terms.",
        "Voices: three of espeak-ng",
        "- It knows eleven terms.",
        "| ktuberling: volunteers, about two voices | 72 | 10,072 terms | 0.875 | 0.986 | 0.970 | 0.556 |",
    ):
        assert line in card


def test_what_a_card_cannot_say_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="the facts say nothing of licence, seed"):
        ship_model(trained, tmp_path / "base", {**FACTS, "licence": "", "seed": None})
    with pytest.raises(ValueError, match="ktuberling: no system 'windows'; there are verified"):
        recall_rows_of([MEASURED], "windows")


def test_a_model_that_is_too_large_is_refused_and_nothing_is_left(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "MOST_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"MB in half precision, and at most 1 MB come along: .* LoRA keeps it out"):
        ship_model(trained, tmp_path / "base", FACTS)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_searches_with_it_and_lists_it(came_along, say, tmp_path):
    import soundfile

    glossary, clip = tmp_path / "terms.txt", tmp_path / "clip.wav"
    glossary.write_text("\n".join(SPOKEN_TERMS), encoding="utf-8")
    soundfile.write(clip, say("saxophone", speed=1.05), 16_000)

    def qtr(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result

    by_default = qtr("search", glossary, clip, "--top-k", 1)
    assert "saxophone" in by_default.stdout
    assert qtr("search", glossary, clip, "--top-k", 1, "--model", "tiny.en").stdout == by_default.stdout
    as_before = qtr("search", "tiny.en", glossary, clip, "--top-k", 1)
    assert as_before.stdout == by_default.stdout
    assert f"hint: the model is an option now: qtr search {glossary} {clip} --model tiny.en" in as_before.stderr
    assert "hint" not in qtr("search", "tiny.en", glossary, clip, "--top-k", 1, "--quiet").stderr
    assert json.loads(qtr("models", "--json").stdout)[0] | {"bytes": 0} == {
        "name": "tiny.en", "base tower": "openai/whisper-tiny.en", "bytes": 0, "languages": ["en"],
        "licence": "apache-2.0", "speech": "ktuberling: volunteers, about two voices", "bank": "10,072 terms",
        "recall@1": 0.875, "recall@10": 0.9861,
    }  # fmt: skip
