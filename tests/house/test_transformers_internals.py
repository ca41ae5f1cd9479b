"""Private parts of `transformers` that are leaned on are where they were: what an upgrade moves is named here."""

import importlib

import pytest
from transformers import PreTrainedModel, Trainer

from qwen_term_retrieval import transformers_internals
from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from qwen_term_retrieval.transformers_internals import (
    ENCODER_METHODS,
    MODEL_ATTRIBUTES,
    TRAINER_OVERRIDES,
    IncompatibleTransformersError,
    check_internals,
    moved_internals,
)


@pytest.fixture(autouse=True)
def _checked_anew():
    check_internals.cache_clear()
    yield
    check_internals.cache_clear()


def test_the_installed_version_has_moved_nothing():
    assert moved_internals() == []


@pytest.mark.parametrize("name", ENCODER_METHODS)
def test_encoders_have_the_private_methods_that_their_adapters_call(name):
    module, _, encoder = name.rpartition(".")
    missing = [
        method
        for method in ENCODER_METHODS[name]
        if not hasattr(getattr(importlib.import_module(module), encoder), method)
    ]
    assert not missing, f"{name} has no {missing}: adapt models/audio_towers/ and transformers_internals.py"


def private_names_shared(ours, theirs):
    """Private names that a class of ours defines anew over the one of transformers."""
    own = {name for base in ours.__mro__ if base.__module__.startswith("qwen_term_retrieval") for name in vars(base)}
    return {name for name in own if name.startswith("_") and not name.startswith("__") and hasattr(theirs, name)}


def test_every_private_method_that_is_overridden_is_named():
    assert private_names_shared(TermRetrievalTrainer, Trainer) == set(TRAINER_OVERRIDES)
    assert private_names_shared(TextPretrainingTrainer, Trainer) <= set(TRAINER_OVERRIDES)
    assert private_names_shared(TermRetrievalModel, PreTrainedModel) - {"_abc_impl"} <= set(MODEL_ATTRIBUTES)


def test_a_method_that_is_gone_or_takes_something_else_is_named_with_the_remedy(monkeypatch):
    monkeypatch.delattr(Trainer, "_run_epoch")
    monkeypatch.setattr(Trainer, "_save", lambda self, folder: None)
    with pytest.raises(
        IncompatibleTransformersError,
        match=r"Trainer._run_epoch is gone; Trainer._save takes folder. Install .*constraints.txt.*internals.py",
    ):
        check_internals()


def test_a_trainer_looks_before_it_begins(monkeypatch, tmp_path):
    from tests.doubles.tiny_trainer import make_tiny_trainer

    monkeypatch.setattr(transformers_internals, "moved_internals", lambda: ["Trainer._save is gone"])
    with pytest.raises(IncompatibleTransformersError, match=r"Trainer\._save is gone"):
        make_tiny_trainer(tmp_path)
