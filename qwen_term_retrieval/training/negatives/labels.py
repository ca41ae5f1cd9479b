"""What is said in the training clips, as mining asks: which terms are right for a clip, and how they are spelled."""

from __future__ import annotations

from typing import Any

from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.training.data.clips import TrainingClips, languages_of


def other_spellings(clips: TrainingClips, glossary: Glossary) -> list[Term]:
    """How labels of the clips are spelled where it is not the spelling that the glossary shows, each once.

    An alias sounds otherwise than its term: what is said is near to how it was spelled.
    """
    shown = {term.term_id for term in glossary}
    others: dict[int, Term] = {}
    columns = [clips.rows.with_format("arrow")[name].to_pylist() for name in ("terms", "spelling_ids")]
    for texts, identities, language in zip(*columns, languages_of(clips.rows), strict=True):
        for text, identity in zip(texts, identities, strict=True):
            if identity not in shown:
                others.setdefault(identity, Term(text, identity, language=language))
    return list(others.values())


def said_in(row: dict[str, Any]) -> list[int]:
    """Ids of all that is said in a clip, labelled or not, and of the whole of its text: none is a wrong term for it."""
    return sorted({*row["term_ids"], *row["spoken_ids"], row["text_id"]})
