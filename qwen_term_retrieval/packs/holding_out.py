"""A part of a corpus, held out where the corpus names none: by what is said, and by who says it where that is known.

Which rows go is a function of their texts and speakers alone, so that a run that is resumed holds out the same.
"""

from __future__ import annotations

import datasets
import numpy as np
import xxhash

from qwen_term_retrieval.text.spellings import normalize_term

# With fewer speakers, one that is held out is a large share of what could be learnt.
FEWEST_SPEAKERS = 5
# With fewer clips that are new in text and speaker, those that are new in text alone judge better.
FEWEST_HELD = 50


def hold_out(rows: datasets.Dataset, fraction: float, where: str) -> tuple[datasets.Dataset, datasets.Dataset, str]:
    """Rows to train on, rows to judge by, and a sentence on how they were divided.

    No text is in both. Where at least five speakers are known and 50 clips are left to judge by, no speaker is either:
    rows that say a text of one part in a voice of the other are in neither.

    Args:
        rows: of the row schema.
        fraction: about how much of the texts is held out, and of the speakers.
        where: what messages call the rows.

    Raises:
        ValueError: the fraction is not between 0 and 1, or the rows cannot be divided so.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"eval_fraction must be above 0 and below 1, not {fraction}")
    columns = rows.with_format("arrow")
    texts = [
        normalize_term(text) or "|".join(sorted(map(normalize_term, terms)))
        for text, terms in zip(columns["text"][:].to_pylist(), columns["terms"][:].to_pylist(), strict=True)
    ]
    speakers = columns["speaker"][:].to_pylist() if "speaker" in rows.column_names else [None] * len(rows)
    held_texts = _chosen({text for text in texts if text}, fraction)
    by_text = np.array([_of_row(text, row, held_texts, fraction) for row, text in enumerate(texts)], dtype=bool)
    known = {speaker for speaker in speakers if speaker}
    if len(known) < FEWEST_SPEAKERS or not all(speakers):
        kept, held = ~by_text, by_text
        how = "by text" + (f"; {len(known)} speakers are too few to hold one out" if known else "")
    else:
        held_speakers = _chosen(known, fraction)
        by_speaker = np.array([speaker in held_speakers for speaker in speakers])
        kept, held = ~by_text & ~by_speaker, by_text & by_speaker
        how = f"by text and speaker, {len(held_speakers)} of {len(known)} speakers"
        if held.sum() < FEWEST_HELD:
            kept, held = ~by_text, by_text
            how = "by text; too few clips are new in text and speaker"
    if not held.any() or not kept.any():
        raise ValueError(
            f"{where}: {len(rows)} clips of {len(set(texts))} texts cannot be divided into some to train on and some "
            "to judge by. Give a validation split, or eval_split='' and eval_strategy='no'"
        )
    neither = len(rows) - int(kept.sum()) - int(held.sum())
    said = f"{int(held.sum())} of {len(rows)} clips are held out to judge by ({how}), {int(kept.sum())} are trained on"
    said += f", {neither} are in neither: their text or speaker is in the other part" if neither else ""
    return rows.select(np.flatnonzero(kept)), rows.select(np.flatnonzero(held)), said


def _chosen(names: set[str], fraction: float) -> set[str]:
    """A fraction of the names, at least one, by their hashes."""
    ordered = sorted(names, key=lambda name: (xxhash.xxh3_64_intdigest(name.encode()), name))
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def _of_row(text: str, row: int, held: set[str], fraction: float) -> bool:
    """Whether a row is held out; one without a text, a clip in which no term is said, by its number."""
    return text in held if text else row % round(1 / fraction) == 0
