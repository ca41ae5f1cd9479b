"""How well terms are found: ranks among a bank of terms, and what a threshold lets through.

`RetrievalEvaluator` runs a model over clips the way a user's search does, with no-term clips, distractors and spans.
What is ranked, and how: `ranked_pairs.py`.

Shapes: P clips, W windows, N spellings of the bank, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.evaluation.long_clips import LONG_SECONDS, runs_of_clips, scores_of_long_clip
from qwen_term_retrieval.evaluation.ranked_pairs import (
    RECALL_AT,
    RankedPairs,
    rank_in_matches,
    rank_pairs,
    ranking_metrics,
)
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.calibration import count_known_terms, gold_ids, judge_matches, unlabelled_ids
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.first_look import NUM_CANDIDATES, nearest
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Glossary, Term, distinct_terms

_CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What `RetrievalEvaluator.run` found.

    metrics: see `RetrievalEvaluator`. matches: the best `top_k` of each clip, best first, whatever the threshold.
    pairs: the rank of every (clip, term), and clips: int64 (P,), the clip of each. metrics_by_bank: Recall@k and MRR
    among so many terms. index: the bank as it was searched.
    """

    metrics: dict[str, float]
    matches: list[list[TermMatch]]
    pairs: RankedPairs
    clips: NDArray[np.int64]
    metrics_by_bank: dict[int, dict[str, float]]
    index: TermIndex


class RetrievalEvaluator:
    """Evaluate a model on clips of the row schema, searched the way `TermRetriever` searches.

    Args:
        rows: clips; those without terms count false alarms.
        glossary: the terms to find. Default: all terms of the rows. Terms of the rows that it lacks are not looked for.
        distractors: further terms to tell apart from them; one that the glossary has already, under any spelling, is
            no distractor.
        seen_terms: terms of the training glossary, to report seen and unseen apart.
        ks: of Recall@k.
        threshold: for precision, recall and false alarms; default the model's calibrated one, if any.
        top_k: matches looked at in each clip at the threshold.
        bank_sizes: so many terms, all of the glossary and a random few of the distractors, are a bank of their own;
            sizes that lie outside are the smallest and the largest there is. See `Evaluation.metrics_by_bank`.

    Example:
        >>> evaluator = RetrievalEvaluator(rows["test"], distractors=wordnet_terms())  # doctest: +SKIP
        >>> metrics = evaluator(model)                                                # doctest: +SKIP
        >>> print(recall_table(metrics))                                              # doctest: +SKIP

    Returns, when called with a model or a retriever:
        `recall@k`, `mrr`, `pairs` (and `_seen`, `_unseen`, `_low`, `_high`), `clips`, `bank`; where spans are known,
        `span_error` (mean distance of start and end from the truth, s) and `span_iou`, of every term that is among
        the clip's best `top_k`; with a threshold `threshold`, `precision`, `recall`, `f1`, and with no-term clips
        `false_alarms_per_minute`.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        glossary: Glossary | Iterable[Any] | None = None,
        *,
        distractors: Iterable[str | Term | Mapping[str, Any]] = (),
        seen_terms: Iterable[str | Term] | None = None,
        ks: Sequence[int] = RECALL_AT,
        threshold: float | None = None,
        top_k: int = 10,
        bank_sizes: Iterable[int] = (),
    ):
        if not len(rows):
            raise ValueError("no clip to evaluate")
        self.rows = rows
        if not isinstance(glossary, Glossary):
            said: Iterable[Any] = terms_said_in(rows) if glossary is None else glossary
            glossary = Glossary(said, source="the terms to find")
        self.bank = Glossary([*glossary, *distractors], language=glossary.language, source="the evaluation bank")
        self.num_wanted = len(glossary)
        self.bank_sizes = sorted({min(max(size, self.num_wanted), len(self.bank)) for size in bank_sizes})
        self.seen_terms = None if seen_terms is None else list(seen_terms)
        self.ks = tuple(ks)
        self.threshold = threshold
        self.top_k = top_k

    def __call__(
        self, model: TermRetrievalModel | TermRetriever, *, batch_size: int = 8, show_progress: bool = True
    ) -> dict[str, float]:
        """The metrics of `run`."""
        return self.run(model, batch_size=batch_size, show_progress=show_progress).metrics

    def run(
        self, model: TermRetrievalModel | TermRetriever, *, batch_size: int = 8, show_progress: bool = True
    ) -> Evaluation:
        """The metrics, and what they were counted from."""
        retriever = model if isinstance(model, TermRetriever) else TermRetriever(model)
        index = retriever.make_index(self.bank, show_progress=show_progress)
        threshold = retriever.threshold if self.threshold is None else self.threshold
        gold = [sorted(gold_ids(row, index)) for row in self.rows_without_audio()]
        count_known_terms(self.rows_without_audio(), index)
        said = {identity for ids in gold for identity in ids}
        rank = self._rank_verified if retriever.verifier is not None else self._rank_windows
        sizes = sorted({*self.bank_sizes, len(self.bank)})
        banks = {size: self._bank_of(size, index, said) for size in sizes}
        ranks: dict[int, list[RankedPairs]] = {size: [] for size in banks}
        matches: list[list[TermMatch]] = []
        span_errors: list[tuple[float, float]] = []
        with Progress(total=len(self.rows), desc="evaluating", unit="clip", shown=show_progress) as bar:
            for first in range(0, len(self.rows), _CLIPS_AT_ONCE):
                rows = [self.rows[row] for row in range(first, min(first + _CLIPS_AT_ONCE, len(self.rows)))]
                neutral = [sorted(unlabelled_ids(row, index)) for row in rows]
                said_in_each = gold[first : first + len(rows)]
                heard, ranked = rank(retriever, rows, said_in_each, neutral, list(banks.values()), batch_size)
                for size, pairs_of_bank in zip(banks, ranked, strict=True):
                    ranks[size].append(pairs_of_bank)
                matches += heard
                bar.update(len(rows))
        for row, found in zip(self.rows_without_audio(), matches, strict=True):
            span_errors += _span_errors(row, found, index)
        pairs = {size: RankedPairs.joined(found) for size, found in ranks.items()}
        metrics = ranking_metrics(pairs[len(self.bank)], self._seen_ids(), self.ks)
        metrics |= {"clips": len(self.rows), "bank": len(self.bank)}
        if span_errors:
            metrics["span_error"], metrics["span_iou"] = np.mean(span_errors, axis=0).tolist()
        if threshold is not None:
            metrics |= self._at_threshold(matches, index, threshold)
        return Evaluation(
            metrics,
            matches,
            pairs[len(self.bank)],
            np.repeat(np.arange(len(gold)), [len(ids) for ids in gold]),
            {size: ranking_metrics(pairs[size], ks=self.ks) for size in self.bank_sizes},
            index,
        )

    def rows_without_audio(self) -> Iterable[Mapping[str, Any]]:
        """The rows; of a dataset without the column that takes time to read."""
        return self.rows.remove_columns("audio") if isinstance(self.rows, datasets.Dataset) else self.rows

    def _rank_windows(
        self,
        retriever: TermRetriever,
        rows: Sequence[Mapping[str, Any]],
        gold: Sequence[Sequence[int]],
        neutral: Sequence[Sequence[int]],
        banks: Sequence[TermIndex],
        batch_size: int,
    ) -> tuple[list[list[TermMatch]], list[RankedPairs]]:
        """The nearest terms of each clip in the largest bank, the last, and ranks in each, by cosine."""
        matches: list[list[TermMatch]] = []
        ranked: list[list[RankedPairs]] = [[] for _ in banks]
        for first, last in runs_of_clips([row["duration"] for row in rows]):
            own, excused = gold[first:last], neutral[first:last]
            audio = [row["audio"] for row in rows[first:last]]
            if rows[first]["duration"] > LONG_SECONDS:
                found, scores = scores_of_long_clip(retriever, audio[0], banks, top_k=self.top_k, batch_size=batch_size)
                matches.append(found)
                for pairs, best_N, bank in zip(ranked, scores, banks, strict=True):
                    # Each spelling by its score, as if that were its vector.
                    ids = bank.vector_term_ids
                    pairs.append(rank_pairs(torch.ones(1, 1), own, best_N[:, None], ids, neutral=excused))
                continue
            windows = retriever.encoder.encode(audio, batch_size=batch_size)
            for pairs, bank in zip(ranked, banks, strict=True):
                pairs.append(_rank(windows, own, excused, bank.vectors_ND, bank.vector_term_ids))
            matches += nearest(windows, banks[-1], self.top_k, retriever.encoder.logit_scale)
        return matches, [RankedPairs.joined(pairs) for pairs in ranked]

    def _rank_verified(
        self,
        retriever: TermRetriever,
        rows: Sequence[Mapping[str, Any]],
        gold: Sequence[Sequence[int]],
        neutral: Sequence[Sequence[int]],
        banks: Sequence[TermIndex],
        batch_size: int,
    ) -> tuple[list[list[TermMatch]], list[RankedPairs]]:
        """The same by the probabilities of what is proposed."""
        clips = [row["audio"] for row in rows]
        found = retriever.nearest_in(banks, clips, top_k=NUM_CANDIDATES, batch_size=batch_size, show_progress=False)
        ranked = [
            rank_in_matches(of_bank, gold, neutral, len(bank)) for of_bank, bank in zip(found, banks, strict=True)
        ]
        return [matches[: self.top_k] for matches in found[-1]], ranked

    def _bank_of(self, size: int, index: TermIndex, said: set[int]) -> TermIndex:
        """The glossary, whatever is `said`, and others up to `size`."""
        if size == len(self.bank):
            return index
        others = np.random.default_rng(0).permutation(np.arange(self.num_wanted, len(self.bank)))
        places = [*range(self.num_wanted), *others[: size - self.num_wanted].tolist()]
        chosen = said | {self.bank[place].term_id for place in places}
        return index.select([place for place, term in enumerate(index.terms) if term.term_id in chosen])

    def _seen_ids(self) -> set[int] | None:
        if self.seen_terms is None:
            return None
        known = (
            self.bank.id_of(term) if isinstance(term, str) else self.bank.id_of(term.text, term.language)
            for term in self.seen_terms
        )
        return {identity for identity in known if identity is not None}

    def _at_threshold(
        self, matches: Sequence[Sequence[TermMatch]], index: TermIndex, threshold: float
    ) -> dict[str, float]:
        accepted = [[match for match in found if match.reaches(threshold)] for found in matches]
        judged = judge_matches(accepted, self.rows, index)
        num_right, num_told = int(judged.right.sum()), len(judged.right)
        metrics = {
            "threshold": threshold,
            "precision": num_right / num_told if num_told else 1.0,
            "recall": num_right / judged.num_gold if judged.num_gold else 1.0,
            "f1": 2 * num_right / (num_told + judged.num_gold) if num_told + judged.num_gold else 1.0,
        }
        no_term = [clip for clip, row in enumerate(self.rows) if not gold_ids(row, index)]
        minutes = sum(self.rows[clip]["duration"] for clip in no_term) / 60
        if minutes:
            alarms = judge_matches([accepted[clip] for clip in no_term], [self.rows[clip] for clip in no_term], index)
            metrics["false_alarms_per_minute"] = len(alarms.right) / minutes
        return metrics


def terms_said_in(rows: Sequence[Mapping[str, Any]]) -> list[Term]:
    """The terms of the rows, each once in each language, in the order of the alphabet."""
    if isinstance(rows, datasets.Dataset):  # not the audio
        rows = rows.select_columns([name for name in ("terms", "language") if name in rows.column_names])
    return distinct_terms((term, row.get("language")) for row in rows for term in row["terms"])


def _rank(
    windows: AudioEmbeddings,
    gold: Sequence[Sequence[int]],
    neutral: Sequence[Sequence[int]],
    bank_ND: torch.Tensor,
    bank_ids: Sequence[int],
) -> RankedPairs:
    # A silent clip has no window: all terms tie at 0 and the right one stands last.
    heard_B = windows.mask.any(dim=1)
    mask_BW = windows.mask | ~heard_B[:, None]
    vectors_BWD = windows.vectors * windows.mask[..., None]
    return rank_pairs(vectors_BWD, gold, bank_ND, bank_ids, neutral=neutral, window_mask=mask_BW)


def _span_errors(row: Mapping[str, Any], found: Sequence[TermMatch], index: TermIndex) -> list[tuple[float, float]]:
    """(mean distance of start and end in seconds, intersection over union) of the row's terms that were found."""
    match_of = {match.term_id: match for match in found}
    errors = []
    spans = zip(row["terms"], row.get("term_starts") or [], row.get("term_ends") or [], strict=False)
    for term, start, end in spans:
        match = match_of.get(index.id_of(term, row.get("language")) or -1)
        if match is not None and start is not None and end is not None:
            shared = max(0.0, min(match.end, end) - max(match.start, start))
            union = max(match.end, end) - min(match.start, start)
            errors.append(((abs(match.start - start) + abs(match.end - end)) / 2, shared / union))
    return errors
