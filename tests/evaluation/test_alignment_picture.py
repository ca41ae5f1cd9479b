"""A picture of an alignment shows at a glance whether a sound of the term was not said."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from qwen_term_retrieval.evaluation.alignment_picture import draw_alignment
from qwen_term_retrieval.retrieval.explaining import AlignedSound, Alignment, HeardSound

SECONDS = np.random.default_rng(0).integers(-9_000, 9_000, 16_000 * 3).astype(np.int16)
DARK_ORANGE = to_rgb("#8C2D04")


def alignment(*scores, start=1.0):
    heard = tuple(HeardSound("ɪ", start + 0.1 * place, start + 0.1 * place + 0.02) for place in range(len(scores)))
    sounds = tuple(
        AlignedSound("ɪ", each.start, each.end, score, ("ɪ",)) for each, score in zip(heard, scores, strict=True)
    )
    return Alignment("six", sounds, (), sum(scores), heard)


def share_of(colour, path):
    return float((np.abs(imread(path)[..., :3] - colour).max(axis=2) < 0.02).mean())


def test_a_sound_that_was_not_said_stands_out(tmp_path):
    draw_alignment(alignment(-0.1, -9.0, 0.0), SECONDS, tmp_path / "twin.png")
    draw_alignment(alignment(-0.1, 0.0, 0.0), SECONDS, tmp_path / "right.png")
    assert share_of(DARK_ORANGE, tmp_path / "twin.png") > 0.002
    assert share_of(DARK_ORANGE, tmp_path / "right.png") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right.png", "twin.png"]


@pytest.mark.parametrize("start", [0.0, 2.9])
def test_a_term_at_the_edge_of_its_clip_is_drawn(tmp_path, start):
    draw_alignment(alignment(-0.1, start=start), SECONDS, tmp_path / "edge.png")
    assert imread(tmp_path / "edge.png").shape[1] == 880
