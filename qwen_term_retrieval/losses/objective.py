"""What is minimised: a function of one batch's embeddings alone, so that GradCache can take its gradient there.

    audio_text_loss_ratio · L(audio, chunk text) + audio_term_loss_ratio · L(audio, terms)
        + hard_neg_weight · L(hard negatives) + no_term_weight · L(clips without a term)
        + phoneme_loss_weight · L(sounds)

Shapes: P pooled spans, Q queries, W windows, N texts of the batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.phonemes import phoneme_loss
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss

LOSSES = ("infonce", "sigmoid")
WINDOW_REDUCTIONS = ("argmax", "logsumexp")


class Embeddings(NamedTuple):
    """What one forward pass of the model gives: spans of audio, texts, and the two learned scalars of their logits.

    `phoneme_nll_B`: how unlikely the phoneme head finds what is said in each clip, where it is trained.
    """

    audio_PD: torch.Tensor
    text_ND: torch.Tensor
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor | None = None
    phoneme_nll_B: torch.Tensor | None = None


@dataclass
class Objective:
    """The weighted sum of the losses of a batch from `TermCollator`.

    Attributes:
        loss: "infonce", or "sigmoid", which needs the model's `logit_bias`.
        audio_text_loss_ratio, audio_term_loss_ratio, hard_neg_weight, no_term_weight, phoneme_loss_weight: a loss of
            weight 0 is not computed.
        no_term_margin: see `no_term_loss`.
        window_temperature: None takes the best window of a clip whose term spans are unknown; a number, in cosines,
            a soft maximum (`reduce_windows_`).

    Raises:
        ValueError: a loss of another name, or a window_temperature of 0 or less.
    """

    loss: str = "infonce"
    audio_text_loss_ratio: float = 0.3
    audio_term_loss_ratio: float = 0.7
    hard_neg_weight: float = 0.0
    no_term_weight: float = 0.0
    phoneme_loss_weight: float = 0.0
    no_term_margin: float = 0.2
    window_temperature: float | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, not {self.loss!r}")
        if self.window_temperature is not None and not self.window_temperature > 0:
            raise ValueError(
                f"window_temperature must be above 0, not {self.window_temperature}; None for the best one"
            )

    @property
    def parts(self) -> dict[str, float]:
        """Names of the losses that are computed, and their weights."""
        weights = {
            "audio_text_loss": self.audio_text_loss_ratio,
            "audio_term_loss": self.audio_term_loss_ratio,
            "hard_negative_loss": self.hard_neg_weight,
            "no_term_loss": self.no_term_weight,
            "phoneme_loss": self.phoneme_loss_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    def __call__(self, embeddings: Embeddings, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """This rank's share of every part, by name, and of their weighted sum, as "loss".

        Args:
            embeddings: of the spans and texts of the batch.
            batch: `text_queries`, `term_queries`, `text_candidates`, `term_candidates`; for hard negatives
                `hard_negatives` (candidates) and `term_queries["negative_ids_QK"]`; for clips without a term
                `no_term_queries`; for the phoneme head `spoken_clips`, see `phoneme_loss`.

        Raises:
            ValueError: "sigmoid" without a bias, a phoneme loss without a phoneme head, or as the losses.
        """
        losses = self._contrastive(embeddings, batch) if self.audio_text_loss_ratio + self.audio_term_loss_ratio else {}
        if self.phoneme_loss_weight:
            if embeddings.phoneme_nll_B is None:
                raise ValueError("the phoneme loss needs a model with a phoneme head: call model.add_phoneme_head()")
            losses["phoneme_loss"] = phoneme_loss(embeddings.phoneme_nll_B, batch["spoken_clips"])
        weighted = [weight * losses[name] for name, weight in self.parts.items()]
        return losses | {"loss": torch.stack(weighted).sum()}

    def _contrastive(self, embeddings: Embeddings, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The losses of spans against texts and terms."""
        texts = _candidates(embeddings, batch["text_candidates"])
        own_terms = _candidates(embeddings, batch["term_candidates"])
        terms = own_terms.gather()
        term_queries = _queries(embeddings, batch["term_queries"])
        losses = {
            "audio_text_loss": self._compare(embeddings, _queries(embeddings, batch["text_queries"]), texts.gather()),
            "audio_term_loss": self._compare(embeddings, term_queries, terms),
        }
        if self.hard_neg_weight:
            losses["hard_negative_loss"] = hard_negative_loss(
                term_queries,
                own_terms,
                _candidates(embeddings, batch["hard_negatives"]),
                batch["term_queries"]["negative_ids_QK"],
                embeddings.logit_scale,
                embeddings.logit_bias if self.loss == "sigmoid" else None,
                window_temperature=self.window_temperature,
            )
        if self.no_term_weight:
            losses["no_term_loss"] = no_term_loss(
                _queries(embeddings, batch["no_term_queries"]),
                terms,
                embeddings.logit_scale,
                self.no_term_margin,
                window_temperature=self.window_temperature,
            )
        return losses

    def _compare(self, embeddings: Embeddings, queries: Queries, candidates: Candidates) -> torch.Tensor:
        if self.loss == "infonce":
            return contrastive_loss(
                queries, candidates, embeddings.logit_scale, window_temperature=self.window_temperature
            )
        if embeddings.logit_bias is None:
            raise ValueError("the sigmoid loss needs a model with a logit_bias: call model.add_logit_bias()")
        return sigmoid_loss(
            queries,
            candidates,
            embeddings.logit_scale,
            embeddings.logit_bias,
            window_temperature=self.window_temperature,
        )


def _queries(embeddings: Embeddings, queries: Mapping[str, torch.Tensor]) -> Queries:
    return Queries(embeddings.audio_PD, queries["windows_QW"], queries["positive_ids_QP"], queries["neutral_ids_QM"])


def _candidates(embeddings: Embeddings, candidates: Mapping[str, torch.Tensor]) -> Candidates:
    return Candidates(embeddings.text_ND.index_select(0, candidates["rows_N"]), candidates["ids_N"])
