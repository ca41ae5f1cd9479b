"""When an upgrade of `datasets` breaks the hooks, these tests say which, before anything else fails obscurely."""

from __future__ import annotations

import subprocess
import sys

import datasets
import datasets.load
import pytest
from datasets import packaged_modules
from datasets.features import features

import qwen_term_retrieval
from qwen_term_retrieval import registration

pytestmark = pytest.mark.usefixtures("hf_home")


@pytest.mark.parametrize("name", registration.TABLES)
def test_every_table_we_enter_is_there_and_is_the_one_that_loading_reads(name):
    table = getattr(packaged_modules, name, None)
    assert table is not None, f"datasets {datasets.__version__} dropped packaged_modules.{name}: see registration.py"
    assert getattr(datasets.load, name) is table, f"datasets.load no longer reads packaged_modules.{name}"


def test_the_feature_registry_is_where_we_expect_it():
    assert callable(getattr(features, "register_feature", None)), "datasets dropped register_feature"
    for feature in (qwen_term_retrieval.MmapAudio, qwen_term_retrieval.FileAudio):
        spec = {"audio": {"sampling_rate": 8000, "decode": True, "_type": feature.__name__}}
        assert datasets.Features.from_dict(spec)["audio"] == feature(8000)


def test_the_builder_hook_is_still_called_and_its_key_still_names_the_cache():
    assert hasattr(datasets.DatasetBuilder, "_create_builder_config"), (
        "datasets renamed the hook of ContentKeyedBuilder"
    )


def test_a_missing_table_is_an_error_that_names_it_and_the_remedy(monkeypatch):
    monkeypatch.delattr(packaged_modules, "_MODULE_TO_EXTENSIONS")
    with pytest.raises(registration.IncompatibleDatasetsError, match=r"has no _MODULE_TO_EXTENSIONS.*constraints.txt"):
        registration.register((qwen_term_retrieval.MmapAudio, qwen_term_retrieval.FileAudio))


def test_registering_twice_changes_nothing():
    before = list(packaged_modules._ALL_ALLOWED_EXTENSIONS)
    registration.register((qwen_term_retrieval.MmapAudio, qwen_term_retrieval.FileAudio))
    assert before == packaged_modules._ALL_ALLOWED_EXTENSIONS
    assert before.count(".termaudio") == 1


def test_importing_the_package_is_light_and_silent():
    code = "import sys, qwen_term_retrieval as q; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "register_feature" not in done.stderr


@pytest.mark.parametrize("name", qwen_term_retrieval.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(qwen_term_retrieval, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = qwen_term_retrieval.Nonsense
