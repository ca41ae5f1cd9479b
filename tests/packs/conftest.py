"""Every test of this room packs and loads with a cache of its own."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(hf_home):
    pass
