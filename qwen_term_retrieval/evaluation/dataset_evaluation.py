"""Evaluation with everything given by name, as a command line gives it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator, terms_said_in
from qwen_term_retrieval.packs.loading import load_rows, split_of
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Glossary


def evaluate_dataset(
    model: str | Path,
    dataset: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    show_progress: bool = True,
    **chosen: Any,
) -> dict[str, float]:
    """`RetrievalEvaluator` on a split of a dataset, everything given by name; what `qtr evaluate` calls.

    `revision`, `device`, `dtype`: see `TermRetriever.from_pretrained`. `chosen`: see `dataset_evaluator`.
    """
    evaluator = dataset_evaluator(dataset, **chosen)
    retriever = TermRetriever.from_pretrained(model, revision=revision, device=device, dtype=dtype)
    return evaluator(retriever, show_progress=show_progress)


def dataset_evaluator(
    dataset: str,
    *,
    split: str = "test",
    glossary: str | Path | None = None,
    distractors: str | Path | None = None,
    train_split: str | None = None,
    threshold: float | None = None,
    bank_sizes: Iterable[int] = (),
) -> RetrievalEvaluator:
    """An evaluator of a split of a dataset, everything given by name.

    Args:
        dataset: pack, corpus folder or Hub id.
        split: of the dataset.
        glossary: file of the terms to find; default: all terms of the split.
        distractors: file of terms to tell apart from them.
        train_split: its terms are the seen ones. None: `train`, where there is one; "": there are no such groups.
        threshold: see `RetrievalEvaluator`.
        bank_sizes: see there.

    Raises:
        FileNotFoundError, ValueError: no such dataset, split or glossary; says which, and what to do.
    """
    terms = None if glossary is None else Glossary.from_file(glossary)
    others = () if distractors is None else Glossary.from_file(distractors)
    splits = load_rows(dataset)
    if train_split is None:
        train_split = "train" if "train" in splits else ""
    seen = split_of(splits, train_split, dataset, "--train-split") if train_split else None
    return RetrievalEvaluator(
        split_of(splits, split, dataset),
        terms,
        distractors=others,
        seen_terms=None if seen is None else terms_said_in(seen),
        threshold=threshold,
        bank_sizes=bank_sizes,
    )
