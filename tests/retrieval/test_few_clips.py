"""A threshold that is chosen on a handful of clips is warned of."""

import logging

import pytest

from qwen_term_retrieval.retrieval.calibration import fits_glossary, warn_of_few


@pytest.mark.parametrize(("num_clips", "num_said", "warned"), [(2, 2, True), (500, 3, True), (50, 50, False)])
def test_few_clips_or_few_terms_said_are_warned_of(caplog, num_clips, num_said, warned):
    with caplog.at_level(logging.WARNING):
        warn_of_few(num_clips, num_said)
    assert ("a threshold chosen on so few is little more than chance" in caplog.text) == warned


def test_a_threshold_fits_glossaries_of_about_the_size_it_was_chosen_with():
    assert fits_glossary(None, 3)
    assert fits_glossary(532, 200)
    assert not fits_glossary(532, 3)
    assert not fits_glossary(532, 10_000)
