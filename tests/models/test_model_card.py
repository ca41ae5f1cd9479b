"""The card of a model: what it says, and that its numbers are found again."""

import pytest
import yaml

from qwen_term_retrieval.models import TermRetrievalConfig
from qwen_term_retrieval.models.model_card import CardNumbers, model_card, read_card, with_threshold

RECALL = [
    {"split": "validation", "terms": "all", "pairs": 32, "recall@1": 0.71, "recall@10": 0.93, "mrr": 0.8},
    {"split": "test", "terms": "all", "pairs": 30, "recall@1": 0.66, "recall@10": 0.9, "mrr": 0.75},
]
THRESHOLDS = [{"split": "test", "precision": 0.81, "recall": 0.7, "f1": 0.75, "false_alarms_per_minute": None}]


def test_the_numbers_of_a_card_are_found_again():
    card = model_card(TermRetrievalConfig(threshold=0.4123), recall=RECALL, step=600, epoch=3.5)
    assert read_card(card) == CardNumbers(600, 3.5, 0.4123, {"recall@1": 0.71, "recall@10": 0.93})
    assert read_card(model_card(TermRetrievalConfig())) == CardNumbers()
    assert read_card("# Somebody's own card\n") == CardNumbers()


def test_a_threshold_that_is_chosen_anew_takes_the_place_of_the_old_one():
    config = TermRetrievalConfig(threshold=0.4123)
    card = model_card(config, recall=RECALL, thresholds=THRESHOLDS, step=600, epoch=3.5) + "\n## Thanks\nTo all.\n"
    config.threshold = 0.6
    changed = with_threshold(card, config, [{"split": "dev", "precision": 0.9, "recall": 0.5, "f1": 0.64}])
    assert read_card(changed) == CardNumbers(600, 3.5, 0.6, {"recall@1": 0.71, "recall@10": 0.93})
    assert "from a score of 0.6000 on" in changed
    assert "| dev | 0.900 | 0.500 | 0.640 |" in changed
    assert "0.4123" not in changed
    assert "| 0.810 |" not in changed
    before, after = (text.split("---\n", 2)[2].split("## Threshold")[0] for text in (card, changed))
    assert before == after
    assert changed.endswith("\n## Thanks\nTo all.\n")
    assert with_threshold("# Somebody's own card\n", config) == "# Somebody's own card\n"


def test_a_card_tells_people_what_the_model_was_trained_on_how_well_it_finds_terms_and_how_to_call_it():
    config = TermRetrievalConfig(audio_tower="openai/whisper-base", threshold=0.4123)
    card = model_card(
        config, repository="me/terms", data="Ten hours.", recall=RECALL, thresholds=THRESHOLDS, step=1600, epoch=3.5
    )
    for said in (
        "# terms",
        'TermRetriever.from_pretrained("me/terms")',
        "qtr search me/terms glossary.txt clip.wav",
        "| weights | of step 1,600, epoch 3.50 |",
        "Ten hours.",
        "| validation | all | 32 | 0.710 | 0.930 | 0.800 |",
        "from a score of 0.4123 on",
        "| test | 0.810 | 0.700 | 0.750 | – |",
    ):
        assert said in card
    uncalibrated = model_card(TermRetrievalConfig())
    assert "Not measured." in uncalibrated
    assert "`qtr calibrate` chooses one" in uncalibrated


def test_the_hub_finds_recall_in_the_metadata_by_split():
    metadata = yaml.safe_load(model_card(TermRetrievalConfig(), repository="me/terms", recall=RECALL).split("---")[1])
    assert metadata["library_name"] == "qwen_term_retrieval"
    (model,) = metadata["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == ["validation, all", "test, all"]
    assert model["results"][1]["metrics"] == [{"type": "recall@1", "value": 0.66}, {"type": "recall@10", "value": 0.9}]


def test_a_card_whose_metadata_is_broken_is_refused():
    with pytest.raises(ValueError, match="the card's metadata is no YAML"):
        read_card("---\ntags: [\n---\n")
