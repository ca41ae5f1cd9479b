import pytest

from tests.doubles.text_pairs import prepared


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder that a run can train on: 300 pairs of made-up words."""
    return prepared(tmp_path_factory.mktemp("text") / "data", 300, vocab_size=320)
