"""The phoneme encoder: what a term sounds like, as one vector.

Symbols are embedded, mixed by a few residual convolutions, and pooled by the same ordered pyramid as the audio. It
is trained from scratch and small on purpose: 100,000 terms are embedded in seconds on two CPU cores, and what it has
to learn is how sounds sound, not what words mean.

A term that is said in several ways has the mean of their vectors: one row a term in every bank, index and loss. The
best of them would need a row each, known only once the audio is; a glossary that wants it lists them as aliases.

Shapes: N terms, A pronunciations a term, R pronunciations of all terms, L symbols, H hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.pooling import pool_pyramid
from qwen_term_retrieval.text.phonetics import INSTALL_HINT, PhonemizerError
from qwen_term_retrieval.text.pronouncing import Pronouncer

logger = logging.getLogger(__name__)

_PAD, _UNKNOWN = 0, 1
_GROUP = 128
# Fewer have little in common.
_SHARE_FROM = 256
_BLOCK = 2048


@dataclass
class PhonemeEncoderConfig:
    """Settings of the phoneme encoder.

    `symbols` and `fingerprint` are filled in from the phonemizer; a saved model refuses another phonemizer by them.
    """

    phonemizer: str = "espeak:en-us"
    """Pronounces terms in its own language or one unsaid; several joined by "|" where `heteronyms` is "mean"."""
    languages: dict[str, str] = field(default_factory=dict)
    """Phonemizers of the other languages of a mixed glossary, such as {"fr": "espeak:fr"}; see `Pronouncer`."""
    heteronyms: Literal["first", "mean"] = "first"
    """What stands for a term that is said in several ways: its first pronunciation, or the mean of all."""
    hidden_size: int = 256
    """Width of symbols and convolutions."""
    num_blocks: int = 3
    """Residual convolution blocks; each looks (kernel_size - 1) / 2 symbols to either side."""
    kernel_size: int = 3
    dropout: float = 0.1
    segments: Sequence[int] = (1, 2, 4)
    """Levels of the pyramid over a term's symbols."""
    symbols: Sequence[str] = field(default_factory=list)
    fingerprint: str = ""

    def bind(self) -> Pronouncer:
        """The phonemizers of this config, filled in when new and checked when saved.

        Raises:
            ValueError: `heteronyms` is none of its values.
            PhonemizerError: one is missing here, or gives other symbols than the model was trained with.
        """
        if self.heteronyms not in ("first", "mean"):
            raise ValueError(f"text_tower_config: heteronyms must be 'first' or 'mean', not {self.heteronyms!r}")
        pronouncer = Pronouncer(self.phonemizer, self.languages, several=self.heteronyms == "mean")
        fingerprint = pronouncer.fingerprint()
        if not self.symbols:
            self.symbols, self.fingerprint = list(pronouncer.symbols), fingerprint
        if self.fingerprint != fingerprint:
            raise PhonemizerError(
                f"the phonemizer {self.phonemizer!r} of this machine pronounces the probe words differently "
                f"({fingerprint}) from the one the model was trained with ({self.fingerprint}), so its terms would be "
                f"wrong. Install the package versions the model was trained with: {INSTALL_HINT}"
            )
        return pronouncer


class ConvBlock(nn.Module):
    """A residual convolution over a padded batch, of which no row depends on the others."""

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.conv = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding="same")
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_RLH: torch.Tensor, mask_RL1: torch.Tensor) -> torch.Tensor:
        # Padding is zeroed before each convolution, so that a term's vector does not depend on its batch mates.
        update_RLH = self.conv((self.norm(hidden_RLH) * mask_RL1).transpose(1, 2)).transpose(1, 2)
        return hidden_RLH + self.dropout(F.gelu(update_RLH))

    def of_contexts(
        self, hidden_CH: torch.Tensor, context_F: torch.Tensor, places_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The block in evaluation, computed once for each distinct neighbourhood.

        Args:
            hidden_CH: before the block; row 0 is padding.
            context_F: the row of each place of a text.
            places_S: the places that are no padding, at least a kernel's width from others' and from the ends.

        Returns:
            hidden after the block, row 0 that of padding, and int64 (S,), the row of each of the places.
        """
        normed_CH = self.norm(hidden_CH)
        normed_CH[0] = 0
        kernel, bias_H = self.conv.weight.shape[2], cast(torch.Tensor, self.conv.bias)
        neighbours = [context_F[places_S + offset - (kernel - 1) // 2] for offset in range(kernel)]
        row_S = neighbours[0]
        for neighbour_S in neighbours[1:]:
            _, row_S = (row_S * len(hidden_CH) + neighbour_S).unique(return_inverse=True)
        any_of_U = row_S.new_empty(int(row_S.max()) + 1)
        any_of_U[row_S] = torch.arange(len(row_S), device=row_S.device)
        neighbours_UK = torch.stack(neighbours, dim=1)[any_of_U]
        # Row c · K + k: what context c says where it is the k-th of a neighbourhood.
        said_RH = (
            (normed_CH @ self.conv.weight.permute(2, 0, 1).flatten(0, 1).T).unflatten(1, (kernel, -1)).flatten(0, 1)
        )
        said_UK = neighbours_UK * kernel + torch.arange(kernel, device=neighbours_UK.device)
        after_CH = hidden_CH.new_zeros(len(any_of_U) + 1, hidden_CH.shape[1])
        # In blocks that stay in a core's cache.
        blocks = zip(after_CH[1:].split(_BLOCK), said_UK.split(_BLOCK), neighbours_UK.split(_BLOCK), strict=True)
        for after_UH, block_UK, own_UK in blocks:
            update_UH = F.embedding_bag(block_UK, said_RH, mode="sum").add_(bias_H)
            torch.add(F.gelu(update_UH), hidden_CH[own_UK[:, (kernel - 1) // 2]], out=after_UH)
        return after_CH, row_S + 1


class PhonemeEncoder(nn.Module):
    """Texts to pooled vectors of their sounds.

    Example:
        >>> encoder = PhonemeEncoder({"phonemizer": "characters"})
        >>> encoder(**encoder.tokenize(["sepsis", "folder 7"])).shape
        torch.Size([2, 1792])
    """

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        try:
            self.config = PhonemeEncoderConfig(**settings)
        except TypeError as error:
            raise ValueError(f"text_tower_config: {error}; see PhonemeEncoderConfig for its fields") from error
        self.pronouncer = self.config.bind()
        self._id_of = {symbol: index for index, symbol in enumerate(self.config.symbols, start=_UNKNOWN + 1)}
        self.num_unknown = 0
        self.embedding = nn.Embedding(len(self.config.symbols) + 2, self.config.hidden_size, padding_idx=_PAD)
        sizes = (self.config.hidden_size, self.config.kernel_size, self.config.dropout)
        self.blocks = nn.ModuleList(ConvBlock(*sizes) for _ in range(self.config.num_blocks))
        self.norm = nn.LayerNorm(self.config.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Size of the pooled vector: one part a segment of the pyramid."""
        return sum(self.config.segments) * self.config.hidden_size

    def settings(self) -> dict[str, Any]:
        """The config; what it says by default about languages and heteronyms is left out, as older models have it."""
        settings = asdict(self.config)
        new = {"languages": {}, "heteronyms": "first"}
        return {name: value for name, value in settings.items() if name not in new or value != new[name]}

    def tokenize(self, texts: Sequence[str], languages: Sequence[str | None] | None = None) -> dict[str, torch.Tensor]:
        """Symbol ids and mask, int64, on the CPU: (N, L) each, or (N, A, L) where `heteronyms` is "mean".

        A symbol outside the vocabulary becomes the unknown symbol and is counted in `num_unknown`; so does a text
        that has no sound at all.

        Args:
            texts: terms.
            languages: codes of the terms' languages, None where it is not known. An encoder without
                `PhonemeEncoderConfig.languages` says all in one way.

        Raises:
            ValueError: a language has no phonemizer.
        """
        terms = [
            [[self._id_of.get(symbol, _UNKNOWN) for symbol in symbols] or [_UNKNOWN] for symbols in ways]
            for ways in self.pronouncer.pronunciations(texts, languages)
        ]
        unknown = sum(way.count(_UNKNOWN) for ways in terms for way in ways)
        if unknown and not self.num_unknown:
            logger.warning("some terms hold symbols outside the model's vocabulary; counted in `num_unknown`")
        self.num_unknown += unknown
        most = max(map(len, terms), default=1)
        longest = max((len(way) for ways in terms for way in ways), default=1)
        padded = [
            [way + [_PAD] * (longest - len(way)) for way in ways] + [[_PAD] * longest] * (most - len(ways))
            for ways in terms
        ]
        input_ids_NAL = torch.tensor(padded, dtype=torch.int64).reshape(len(terms), most, longest)
        input_ids = input_ids_NAL if self.config.heteronyms == "mean" else input_ids_NAL[:, 0]
        return {"input_ids": input_ids, "attention_mask": (input_ids != _PAD).long()}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (N, hidden_size) of what `tokenize` gave."""
        if input_ids.dim() == 2:
            return self._encode_grouped(input_ids, attention_mask)
        spoken_NA = attention_mask.any(-1)
        pooled_RH = self._encode_grouped(input_ids[spoken_NA], attention_mask[spoken_NA])
        term_R = spoken_NA.nonzero()[:, 0]
        sum_NH = pooled_RH.new_zeros(len(input_ids), pooled_RH.shape[1]).index_add(0, term_R, pooled_RH)
        return sum_NH / spoken_NA.sum(1, keepdim=True)

    def _encode_grouped(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """In groups of like length: one long pronunciation would pad all others to several times theirs."""
        length_R = attention_mask.sum(-1)
        order_R = length_R.argsort(stable=True)
        shared = len(input_ids) >= _SHARE_FROM and not self.training and not torch.is_grad_enabled()
        if shared:
            hidden_CH, context_RL = self._shared_contexts(input_ids)
        pooled = []
        for rows in order_R.split(_GROUP):
            longest = int(length_R[rows[-1]])
            if shared:
                pooled.append(self._pool(hidden_CH[context_RL[rows, :longest]], length_R[rows]))
            else:
                pooled.append(self._encode(input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(pooled)[order_R.argsort()]

    def _shared_contexts(self, input_ids_RL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the blocks make of each symbol of many terms, computed once for each context in which it stands.

        After a block a symbol knows its neighbours, after three of them three to either side: of a million terms most
        have their contexts in common, and a block's product is over the contexts of the block before.

        Returns:
            hidden_CH, normalised, row 0 that of padding; and int64 (R, L), the context of each symbol.
        """
        spoken_RL = input_ids_RL != _PAD
        # One after another, with so much padding between them that none hears its neighbour.
        kernel = self.config.kernel_size
        lengths_R = spoken_RL.sum(1)
        starts_R = (lengths_R + kernel).cumsum(0) - lengths_R
        places_RL = starts_R[:, None] + torch.arange(input_ids_RL.shape[1], device=input_ids_RL.device)
        places_S = places_RL[spoken_RL]
        context_F = input_ids_RL.new_zeros(int(starts_R[-1] + lengths_R[-1]) + kernel)
        context_F[places_S] = input_ids_RL[spoken_RL]
        hidden_CH = self.embedding.weight
        for block in cast(Iterable[ConvBlock], self.blocks):
            hidden_CH, context_S = block.of_contexts(hidden_CH, context_F, places_S)
            context_F[places_S] = context_S
        context_RL = torch.zeros_like(input_ids_RL)
        context_RL[spoken_RL] = context_F[places_S]
        return self.norm(hidden_CH), context_RL

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask_RL1 = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        hidden_RLH = self.embedding(input_ids)
        for block in self.blocks:
            hidden_RLH = block(hidden_RLH, mask_RL1)
        return self._pool(self.norm(hidden_RLH), attention_mask.sum(-1))

    def _pool(self, hidden_RLH: torch.Tensor, length_R: torch.Tensor) -> torch.Tensor:
        row_R = torch.arange(len(length_R), device=length_R.device)
        return pool_pyramid(hidden_RLH, length_R, row_R, torch.zeros_like(length_R), length_R, self.config.segments)
