"""Every setting stands in the documentation with its default; what cannot be is refused."""

import re
from pathlib import Path

import pytest
import yaml

from qwen_term_retrieval.pretraining.audio.arguments import (
    AUDIO_PRETRAINING,
    AudioDataArguments,
    AudioPretrainingArguments,
    NestModelArguments,
)

PAGE = (Path(__file__).parents[3] / "docs" / "pretraining.md").read_text(encoding="utf-8").partition("\n## Text")[0]
SETTINGS = {
    name: arguments.__dataclass_fields__[name].default
    for arguments in AUDIO_PRETRAINING
    for name in arguments.__annotations__
    if name in arguments.__dataclass_fields__ and arguments.__dataclass_fields__[name].init
}
TABLE = dict(re.findall(r"^\| `(\w+)` \| `?([^|]*?)`? \| .+ \|$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_explained_with_its_default(name):
    said = None if TABLE[name] == "none" else yaml.safe_load(TABLE[name])
    assert said == SETTINGS[name]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (NestModelArguments, {"size": "XXL"}, "size must be one of demo, S, M, L, XL, not 'XXL'"),
        (NestModelArguments, {"mask_position": "in"}, "mask_position must be one of before, after"),
        (NestModelArguments, {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        (NestModelArguments, {"encoder": "[1]"}, "encoder must be a mapping"),
        (AudioDataArguments, {"eval_share": 0.0}, "eval_share must lie between 0 and 1"),
        (AudioDataArguments, {"padding": "edge"}, "padding must be one of repeat, zero"),
        (AudioDataArguments, {"augmentation": {"noise_prob": 2}}, r"noise_prob must lie in \[0, 1\]"),
        (AudioDataArguments, {"augmentation": {"noise_span": (0.5, 1.5)}}, r"noise_span must lie in \(0, 1\]"),
        (AudioPretrainingArguments, {"max_eval_clips": -1, "use_cpu": True}, "max_eval_clips must not be negative"),
        (AudioPretrainingArguments, {"max_batch_seconds": 0, "use_cpu": True}, "max_batch_seconds must be positive"),
    ],
)
def test_what_cannot_be_is_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(**settings)
