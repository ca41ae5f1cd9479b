"""What a term is read by: phonemes, letters, or an encoder that learned sounds from spelling.

    python scripts/prepare_text.py data/text_sounds --corpus sounds --vocab_size 384 --valid 0.02
    accelerate launch scripts/pretrain_text.py --recipe text_sounds
    python -m benchmarks.real_speech.ablations.text_towers

The budget, sets, banks and seeds are those of `ablation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_speech.ablations.ablation import BUDGET, Variant, run, run_variants
from benchmarks.real_speech.ablations.report import table_of_runs

WORK = Path("outputs/text_towers")
TEXT_SOUNDS = {"text_tower": "outputs/text_sounds", "text_tower_config": {"pooling": "pyramid"}}
VARIANTS = (
    Variant("base", "phonemes of espeak-ng, a few convolutions, trained here"),
    Variant("characters", "letters, the same convolutions", model={"text_tower": "phonemes:characters"}),
    Variant(
        "text sounds",
        "spelling pieces, the encoder of the recipe `text_sounds`, frozen, pooled in order; no phonemizer in a search",
        model=TEXT_SOUNDS,
    ),
    Variant("text sounds trained", "the same encoder, learning too", model=TEXT_SOUNDS, train_text_tower=True),
)
WHOLE_CLIP = Variant("base, whole clip", "base, searched by one vector of the whole clip")


def main(arguments: Sequence[str] | None = None) -> None:
    def report(results: Path) -> str:
        return table_of_runs("text_towers", results, VARIANTS, WHOLE_CLIP, {"budget": BUDGET})

    run_variants(__doc__, VARIANTS, WORK, run, report, arguments)


if __name__ == "__main__":
    main()
