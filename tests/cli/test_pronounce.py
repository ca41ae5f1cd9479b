"""`qtr pronounce`: what will be listened for, entry by entry, with what was left out."""

import json

import pytest
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.models.weights import shipped

ENTRIES = [
    {"term": "Kubernetes", "pronunciations": ["/k uː b ɚ n ɛ t iː z/"], "weight": 2, "threshold": 0.7, "domain": "it"},
    "IL-6",
    "東京",
    "Sepsis",
    "sepsis!",
    "…",
    "dough",
    "doe",
]


@pytest.fixture
def pronounce(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    path = tmp_path / "terms.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")

    def run(*options):
        result = CliRunner().invoke(app, ["pronounce", str(path), *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_every_way_is_shown_and_what_was_left_out(pronounce):
    lines = pronounce().splitlines()
    assert lines == [
        "Kubernetes  k uː b ɚ n ɛ t iː z   as the entry says, weight 2, threshold 0.7",
        "IL-6        aɪ ɛ l s ɪ k s   “I.L. 6”",
        "            ɪ l s ɪ k s   “IL 6”",
        "東京          – cannot be said: the model does not read 東京",
        "Sepsis      s ɛ p s ɪ s",
        "dough       d oʊ",
        "doe         d oʊ",
        "said alike: dough, doe",
        "left out: entry 5, 'sepsis!': said as 'Sepsis'",
        "left out: entry 6, '…': nothing is said",
        "left out: '東京': the model cannot read '東京'",
        "not understood, and left out: domain",
        "6 terms, 3 left out",
    ]


def test_as_json_it_is_one_object(pronounce):
    said = json.loads(pronounce("--format", "json"))
    assert said["terms"][1] == {
        "term": "IL-6",
        "ways": [
            {"words": "I.L. 6", "sounds": ["aɪ", "ɛ", "l", "s", "ɪ", "k", "s"]},
            {"words": "IL 6", "sounds": ["ɪ", "l", "s", "ɪ", "k", "s"]},
        ],
    }
    assert said["terms"][0] | {"ways": []} == {"term": "Kubernetes", "ways": [], "weight": 2.0, "threshold": 0.7}
    assert said["terms"][2] == {"term": "東京", "ways": [], "unread": "東京"}
    assert (said["alike"], said["unknown_keys"], len(said["left_out"])) == ([["dough", "doe"]], ["domain"], 3)


def test_a_model_says_it_in_its_own_symbols(pronounce, listening_model, tmp_path):
    listening_model.save_pretrained(tmp_path / "model")
    assert "IL-6        aɪ ɛ l s ɪ k s" in pronounce("--model", str(tmp_path / "model"))
