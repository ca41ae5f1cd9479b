"""The recordings of real speech that models are judged on, and the one rule for what may be trained on.

`asterisk`: one professional speaker in a studio. `ktuberling`: volunteers with microphones of their own. A training
corpus may hold no text for which `is_test_text` is true, whichever set it is judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.real_speech.asterisk import is_asterisk_text, read_prompts, utterances
from benchmarks.real_speech.volunteers import is_ktuberling_text, ktuberling_utterances
from qwen_term_retrieval.corpora.utterance import Utterance

SHORT_WORDS = 4


@dataclass(frozen=True)
class TestSet:
    """Clips that each say one term.

    `speakers` describes them in a few words; `target_recall_at_10` is what short clips shall reach, by bank.
    """

    name: str
    speakers: str
    utterances: Callable[[], Iterator[Utterance]]
    target_recall_at_10: Mapping[str, float] = field(default_factory=dict)


TEST_SETS = {
    "asterisk": TestSet(
        "asterisk",
        "one studio speaker",
        lambda: utterances(read_prompts().prompts),
        {"own": 0.98, "+10k": 0.97, "+100k": 0.94},
    ),
    "ktuberling": TestSet("ktuberling", "volunteers, about two voices", ktuberling_utterances),
}


def is_test_text(text: str) -> bool:
    """Whether a clip of any test set says just this, however it is spelled."""
    return is_asterisk_text(text) or is_ktuberling_text(text)
