"""Every setting is in the documentation, with the default that it has."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.runs.arguments import RunArguments
from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments

DOCS = Path(__file__).parents[2] / "docs"
TRAINING, DATA = ((DOCS / name).read_text(encoding="utf-8") for name in ("training.md", "data.md"))
SETTINGS = {
    name: arguments.__dataclass_fields__[name].default
    for arguments in (ModelArguments, DataArguments, RunArguments, TermRetrievalArguments)
    for name in arguments.__annotations__  # its own, not those of `TrainingArguments`
    if arguments.__dataclass_fields__[name].init
}
# | `name` | default | what it does |
TABLE = dict(re.findall(r"^\| `(\w+)` \| `?([^|]*?)`? \| .+ \|$", TRAINING, re.MULTILINE))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_a_run_is_explained(name):
    assert re.search(rf"`(--)?{name}\b", TRAINING)


@pytest.mark.parametrize("name", [name for name in TABLE if name in SETTINGS])
def test_the_table_of_settings_says_their_defaults(name):
    said = None if TABLE[name] == "none" else yaml.safe_load(TABLE[name])
    assert said == SETTINGS[name]


def test_the_table_of_settings_is_found():
    assert len(TABLE.keys() & SETTINGS.keys()) > 30


@pytest.mark.parametrize("field", dataclasses.fields(AugmentationConfig), ids=lambda field: field.name)
def test_every_setting_of_augmentation_is_explained_with_its_default(field):
    if field.default is None:
        assert f"`{field.name}`" in DATA
        return
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    said = [yaml.safe_load(span) for span in re.findall(rf"`({field.name}: [^`]+)`", DATA)]
    assert said == [{field.name: default}]
