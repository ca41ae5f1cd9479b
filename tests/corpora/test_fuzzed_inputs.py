"""A small, seeded part of the fuzz campaign of `benchmarks.faults`, in this process."""

from __future__ import annotations

import pytest

from benchmarks.faults.fuzz import PACK_FILES, SILENT, Seeds, trial_function
from benchmarks.faults.inputs import AUDIO_FORMATS, MANIFESTS, mutated
from benchmarks.faults.isolation import OUR_ERRORS

KINDS = (*AUDIO_FORMATS, *MANIFESTS, "tar", "legacy index", *PACK_FILES)
INPUTS_PER_KIND = 4


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Seeds:
    return Seeds(tmp_path_factory.mktemp("fuzz") / "seeds")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_input_is_read(kind, seeds, tmp_path):
    content, _ = seeds.contents()[kind]
    assert not trial_function(kind)(tmp_path, seeds.folder, content).startswith(SILENT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_input_is_read_or_refused_by_an_error_of_ours(kind, seeds, tmp_path):
    content, is_text = seeds.contents()[kind]
    for seed in range(INPUTS_PER_KIND):
        damaged, mutations = mutated(content, is_text=is_text, seed=seed)
        scratch = tmp_path / str(seed)
        scratch.mkdir()
        try:
            came_of_it = trial_function(kind)(scratch, seeds.folder, damaged)
        except OUR_ERRORS as error:
            came_of_it = str(error)
        assert came_of_it, mutations
        assert not came_of_it.startswith(SILENT), mutations


def test_the_same_seed_damages_an_input_in_the_same_way():
    content = bytes(range(256))
    assert mutated(content, is_text=False, seed=7) == mutated(content, is_text=False, seed=7)
    assert mutated(content, is_text=False, seed=7) != mutated(content, is_text=False, seed=8)
