"""A list of rows to one batch: audio, queries into it, and candidate texts, all as tensors.

A *query* is what is pooled to be compared: a span of a clip whose times are known, or all windows of a clip whose
term times are not. A *string* is a text to embed, in its language; a batch embeds each distinct chunk text and term
once, however many clips hold it. The two losses then pick their rows by index, so that one forward pass serves both.

Shapes: B clips, P pooled spans, Q queries, W windows, N strings, K hard negatives; ids are int64 padded with -1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.losses.contrastive import NO_ID
from qwen_term_retrieval.text.glossary import Term


@dataclass
class TermCollator:
    """Builds the inputs of one training step.

    Args:
        load_audio: rows -> the model's audio inputs on the CPU and the number of encoder frames of each clip.
        window_spans: frames of each clip (B,) -> the window grid (clip_index_P, start_P, end_P), in frames.
        tokenize: strings and the language of each -> the text tower's inputs.
        frame_rate: encoder frames a second.
        bank: the training glossary.
        bank_negatives: terms of the bank drawn for each clip as further wrong answers. They cost the text tower alone,
            and show it far more words than are spoken.
        span_jitter: each end of a known span moves by up to this share of its length, as far as the clip allows;
            windows at search time never fit a term exactly either.
        hard_negatives_of: row number of a clip and optimizer step (`row["clip"]`, `row["step"]`) -> positions in `bank`
            of the terms it is compared with alone; -1 for none. Called in the workers: it must pickle.
        hard_neg_k: how many of them, at most.
        no_term_queries: whether clips without a term ask for all of their windows.
        pronunciations: texts and the language of each -> every way to say them, as classes of the phoneme head; only
            where it is trained. Called in the workers: it must pickle.
    """

    load_audio: Callable[[Sequence[dict[str, Any]]], tuple[dict[str, torch.Tensor], torch.Tensor]]
    window_spans: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    tokenize: Callable[[list[str], list[str | None]], dict[str, torch.Tensor]]
    frame_rate: float
    span_jitter: float = 0.1
    bank: Sequence[Term] = ()
    bank_negatives: int = 0
    hard_negatives_of: Callable[[int, int], Sequence[int]] | None = None
    hard_neg_k: int = 10
    no_term_queries: bool = False
    pronunciations: Callable[[list[str], list[str | None]], list[list[NDArray[np.int16]]]] | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        audio_inputs, num_frames_B = self.load_audio(rows)
        frames_of = num_frames_B.tolist()
        spans = _Spans()
        strings = _Strings()
        texts, terms, no_terms = _QueryList(), _QueryList(), _QueryList()
        for clip, row in enumerate(rows):
            language = row.get("language")
            whole_clip = spans.add(clip, 0.0, float(frames_of[clip]))
            if row["text_id"] != NO_ID:
                texts.add([whole_clip], positive=[row["text_id"]], neutral=row["same_text_ids"])
                strings.add(row["text_id"], row["text"], language, "text")
            for term, identity in zip(row["terms"], row["spelling_ids"], strict=True):
                strings.add(identity, term, language, "term")
            negatives = self._hard_negatives(row)
            for term in negatives:
                strings.add(term.term_id, term.text, term.language, "hard")
            self._add_term_queries(clip, row, num_frames_B, spans, terms, [term.term_id for term in negatives])
            if self.no_term_queries and not row["terms"]:
                windows = self._add_windows(clip, num_frames_B, spans)
                no_terms.add(windows, positive=[], neutral=sorted(row["spoken_ids"]))
        for term in self._draw_negatives(rows):
            strings.add(term.term_id, term.text, term.language, "term")
        if not strings.texts:  # the text tower takes part in every step, on every rank
            strings.add_unasked(self.bank[0])
        text_inputs = self.tokenize(strings.texts, strings.languages)
        batch: dict[str, Any] = {
            "model_inputs": {**audio_inputs, **spans.tensors(), "text_inputs": text_inputs},
            "text_queries": texts.tensors(),
            "term_queries": terms.tensors(),
            "text_candidates": strings.tensors("text"),
            "term_candidates": strings.tensors("term"),
        }
        if self.hard_negatives_of is not None:
            batch["term_queries"]["negative_ids_QK"] = pad_lists(terms.negative)
            batch["hard_negatives"] = strings.tensors("hard")
        if self.no_term_queries:
            batch["no_term_queries"] = no_terms.tensors()
        if self.pronunciations is not None:
            phonemes = phonemes_of_rows(rows, self.pronunciations)
            batch["model_inputs"]["phonemes_BP"] = pad_lists(phonemes).clamp_(min=0)
            batch["model_inputs"]["num_phonemes_B"] = torch.tensor([len(each) for each in phonemes])
        return batch

    def _draw_negatives(self, rows: Sequence[dict[str, Any]]) -> Iterator[Term]:
        """Each clip draws its own, by its own number, so that a batch has the same ones on any number of ranks."""
        for row in rows if self.bank_negatives and self.bank else ():
            generator = np.random.default_rng((row["draw"], 1))
            for position in generator.integers(len(self.bank), size=self.bank_negatives).tolist():
                yield self.bank[position]

    def _hard_negatives(self, row: dict[str, Any]) -> list[Term]:
        if self.hard_negatives_of is None or not row["terms"]:
            return []
        positions = self.hard_negatives_of(row["clip"], row["step"])[: self.hard_neg_k]
        return [self.bank[position] for position in positions if position >= 0]

    def _add_term_queries(self, clip, row, num_frames_B, spans, queries, negative) -> None:
        """One query for each term whose span is known, one over all windows for the terms whose span is not."""
        frames = float(num_frames_B[clip])
        generator = np.random.default_rng(row["draw"])
        neutral = sorted({*row["term_ids"], *row["spoken_ids"]})
        unplaced = []
        for identity, start, end in zip(row["spelling_ids"], row["term_starts"], row["term_ends"], strict=True):
            if start is None or end is None:
                unplaced.append(identity)
                continue
            start, end = self._jitter(start * self.frame_rate, end * self.frame_rate, frames, generator)
            queries.add([spans.add(clip, start, end)], positive=[identity], neutral=neutral, negative=negative)
        if unplaced:
            windows = self._add_windows(clip, num_frames_B, spans)
            queries.add(windows, positive=unplaced, neutral=neutral, negative=negative)

    def _add_windows(self, clip, num_frames_B, spans) -> Sequence[int]:
        """The clip's whole grid."""
        _, start_P, end_P = self.window_spans(num_frames_B[clip : clip + 1])
        return spans.add_grid(clip, start_P.numpy(), end_P.numpy())

    def _jitter(self, start, end, frames, generator) -> tuple[float, float]:
        reach = self.span_jitter * (end - start)
        low, high = generator.uniform(-reach, reach, size=2)
        return max(0.0, start + low), min(frames, end + high)


@dataclass
class _Spans:
    """Pooled spans of the batch, each a row of clip, start and end; one that is asked for again is pooled once."""

    blocks: list[NDArray[np.float64]] = field(default_factory=list)
    rows: dict[tuple[int, float, float], int] = field(default_factory=dict)
    count: int = 0

    def add(self, clip: int, start: float, end: float) -> int:
        span = (clip, start, end)
        if span not in self.rows:
            self.rows[span] = self._append(np.array([span]))[0]
        return self.rows[span]

    def add_grid(self, clip: int, start_W: NDArray[np.float32], end_W: NDArray[np.float32]) -> Sequence[int]:
        """All windows of a clip; a grid of one window may be the span of the whole clip."""
        if len(start_W) == 1:
            return [self.add(clip, float(start_W[0]), float(end_W[0]))]
        return self._append(np.stack([np.full(len(start_W), clip), start_W, end_W], axis=1))

    def _append(self, block: NDArray[np.float64]) -> range:
        first, self.count = self.count, self.count + len(block)
        self.blocks.append(block)
        return range(first, self.count)

    def tensors(self) -> dict[str, torch.Tensor]:
        clip_P, start_P, end_P = torch.from_numpy(np.concatenate(self.blocks)).T
        return {"clip_index_P": clip_P.long(), "start_P": start_P.float(), "end_P": end_P.float()}


@dataclass
class _Strings:
    """Distinct texts of the batch, each in its language.

    A chunk text that is also a term is embedded once and used by both losses.
    """

    texts: list[str] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)
    rows: dict[tuple[str, str | None], int] = field(default_factory=dict)
    candidates: dict[str, dict[int, int]] = field(default_factory=lambda: {"text": {}, "term": {}, "hard": {}})

    def add(self, identity: int, text: str, language: str | None, kind: str) -> None:
        if identity not in self.candidates[kind]:
            self.candidates[kind][identity] = self._row_of(text, language)

    def add_unasked(self, term: Term) -> None:
        """A text that is embedded and compared with nothing."""
        self._row_of(term.text, term.language)

    def _row_of(self, text: str, language: str | None) -> int:
        if (text, language) not in self.rows:
            self.rows[text, language] = len(self.texts)
            self.texts.append(text)
            self.languages.append(language)
        return self.rows[text, language]

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        ids = self.candidates[kind]
        return {
            "ids_N": torch.tensor(list(ids), dtype=torch.long),
            "rows_N": torch.tensor(list(ids.values()), dtype=torch.long),
        }


@dataclass
class _QueryList:
    windows: list[Sequence[int]] = field(default_factory=list)
    positive: list[list[int]] = field(default_factory=list)
    neutral: list[list[int]] = field(default_factory=list)
    negative: list[list[int]] = field(default_factory=list)

    def add(
        self, windows: Sequence[int], positive: list[int], neutral: list[int], negative: Sequence[int] = ()
    ) -> None:
        self.windows.append(windows)
        self.positive.append(positive)
        self.neutral.append(neutral)
        self.negative.append(list(negative))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "windows_QW": pad_lists(self.windows),
            "positive_ids_QP": pad_lists(self.positive),
            "neutral_ids_QM": pad_lists(self.neutral),
        }


def phonemes_of_rows(
    rows: Sequence[dict[str, Any]],
    pronunciations: Callable[[list[str], list[str | None]], list[list[NDArray[np.int16]]]],
) -> list[list[int]]:
    """What is said in each clip, the first way to say it; nothing where it is not known."""
    known = [clip for clip, row in enumerate(rows) if row["text"].strip()]
    said = pronunciations([rows[clip]["text"] for clip in known], [rows[clip].get("language") for clip in known])
    phonemes: list[list[int]] = [[] for _ in rows]
    for clip, ways in zip(known, said, strict=True):
        phonemes[clip] = ways[0].tolist() if ways else []
    return phonemes


def note_spoken_clips(batches: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Tell each micro-batch of a step how many clips of known text it would hold if all held as many.

    Every rank calls it. So the phoneme loss of a step is a mean over its clips, however they are shared out.
    """
    own = sum(int((batch["model_inputs"]["num_phonemes_B"] > 0).sum()) for batch in batches)
    spoken = sum_over_ranks(torch.tensor(float(own), device=device))
    for batch in batches:
        batch["spoken_clips"] = spoken / (len(batches) * world_size())


def pad_lists(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """Ragged lists to int64 (len, longest), padded with -1; at least one column."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    padded = np.full((len(lists), lengths.max(initial=1)), NO_ID)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = list(itertools.chain.from_iterable(lists))
    return torch.from_numpy(padded)
