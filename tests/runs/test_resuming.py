"""A run goes on over the data that it began with, wherever it lies now, and over no other."""

import json
import re

import numpy as np
import pytest

from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.packs.appending import append_corpus
from qwen_term_retrieval.packs.loading import load_rows
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.runs.checkpoints.resuming import FILE_NAME, changes, check_same_data
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training import run
from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.data.clips import data_identity, training_glossary
from tests.doubles.tiny_trainer import make_tiny_trainer


def identity_of(rows, glossary=None):
    return data_identity(rows, training_glossary(rows, glossary))


def utterances(first, count):
    for number in range(first, first + count):
        pcm = np.full(1600 + 16 * number, number, np.int16)
        yield Utterance(f"u{number}", pcm, sampling_rate=16_000, text=f"word {number}", terms=(f"word {number}",))


def test_a_pack_that_was_moved_is_the_same_data_and_one_that_has_grown_is_not(tmp_path):
    pack_corpus(utterances(0, 3), tmp_path / "pack", num_workers=1, quiet=True)
    before = identity_of(load_rows(str(tmp_path / "pack"))["train"])
    moved = (tmp_path / "pack").rename(tmp_path / "renamed")
    assert identity_of(load_rows(str(moved))["train"]) == before
    append_corpus(utterances(3, 1), moved, num_workers=1, quiet=True)
    grown = changes(before, identity_of(load_rows(str(moved))["train"]))
    assert re.fullmatch(r"clips: 3 with digest \w+ then, 4 with digest \w+ now; terms: 3 .* then, 4 .* now", grown)


@pytest.mark.parametrize(
    "relabel",
    [
        lambda row: {"terms": ["other", *row["terms"][1:]]},
        lambda row: {"text": "other"},
        lambda row: {"duration": row["duration"] + 1},
        lambda row: {"term_starts": [None] * len(row["terms"])},
    ],
    ids=["terms", "text", "duration", "spans"],
)
def test_the_same_clips_under_other_labels_are_other_data(demo_rows, relabel):
    rows = demo_rows["train"].filter(lambda terms: bool(terms), input_columns="terms").select(range(4))
    glossary = training_glossary(rows)
    assert changes(data_identity(rows, glossary), data_identity(rows.map(relabel), glossary)).startswith("clips: 4 ")
    assert changes(data_identity(rows, glossary), data_identity(rows.select([1, 0, 2, 3]), glossary))
    reordered = Glossary([*glossary][::-1])
    assert changes(data_identity(rows, glossary), data_identity(rows, reordered)).startswith("terms: ")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two epochs, stopped after the first."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_tiny_trainer(folder, num_train_epochs=1)
    trainer.train()
    return folder


@pytest.mark.slow
def test_a_resumed_trainer_goes_on_over_its_own_rows_and_refuses_others(stopped, tmp_path):
    checkpoint = stopped / "checkpoint-2"
    for output_dir in (stopped, tmp_path / "elsewhere"):
        trainer = make_tiny_trainer(output_dir, num_train_epochs=2, max_steps=3, save_strategy="no", eval_strategy="no")
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.state.global_step == 3
    others = make_tiny_trainer(tmp_path / "others", num_train_epochs=2, num_clips=17)
    with pytest.raises(ValueError, match=r"checkpoint-2 was trained on other data \(clips: 16 .* --overwrite"):
        others.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.slow
def test_a_run_refuses_other_data_before_anything_is_prepared(stopped, monkeypatch):
    monkeypatch.setattr(run, "TermRetrievalTrainer", None)
    args = TermRetrievalArguments(output_dir=str(stopped), use_cpu=True, resume=True)
    model_args = ModelArguments(model=str(stopped / "checkpoint-2"))
    with pytest.raises(ValueError, match=r"other data .*; or train its model on with --model and another --output_dir"):
        run.run_training(model_args, DataArguments(), args)


@pytest.mark.slow
def test_a_checkpoint_without_its_optimizer_is_not_resumed_from_as_if_it_had_one(tmp_path):
    make_tiny_trainer(tmp_path, num_train_epochs=1, save_only_model=True).train()
    again = make_tiny_trainer(tmp_path, num_train_epochs=2)
    with pytest.raises(ValueError, match=r"has no optimizer\.pt and no scheduler\.pt, .* save_only_model"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_gone_on_from_with_a_warning(tmp_path, caplog):
    check_same_data(tmp_path, {"clips": "1"})
    assert "does not say what it was trained on" in caplog.text
    (tmp_path / FILE_NAME).write_text(json.dumps({"clips": "1"}))
    caplog.clear()
    check_same_data(tmp_path, {"clips": "1"})
    assert not caplog.text
