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

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.spans.pooling import pool_pyramid, pool_runs
from qwen_term_retrieval.text.phonetics import INSTALL_HINT, PhonemizerError
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.ways import Ways

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

    activation = staticmethod(F.gelu)

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.conv = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding="same")
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_RLH: torch.Tensor, mask_RL1: torch.Tensor) -> torch.Tensor:
        # Padding is zeroed before each convolution, so that a term's vector does not depend on its batch mates.
        update_RLH = self.conv((self.norm(hidden_RLH) * mask_RL1).transpose(1, 2)).transpose(1, 2)
        return hidden_RLH + self.dropout(self.activation(update_RLH))

    def said(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        """The products of the block in evaluation: row c · K + k is what context c says as the k-th of a neighbourhood.

        Args:
            hidden_CH: contexts before the block, row 0 that of padding, which says nothing.
        """
        weight_HJ = self.conv.weight.permute(1, 2, 0).flatten(1)
        said_CJ = hidden_CH.new_empty(len(hidden_CH), weight_HJ.shape[1])
        # In blocks that stay in a core's cache.
        for said_BJ, hidden_BH in zip(said_CJ.split(_BLOCK), hidden_CH.split(_BLOCK), strict=True):
            torch.mm(self.norm(hidden_BH), weight_HJ, out=said_BJ)
        said_CJ[0] = 0
        return said_CJ.unflatten(1, (self.conv.weight.shape[2], -1)).flatten(0, 1)

    def after(
        self,
        said_RH: torch.Tensor,
        hidden_CH: torch.Tensor,
        neighbours_UK: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the block makes of neighbourhoods of contexts, (U, H).

        Args:
            said_RH: `said` of the contexts.
            hidden_CH: the contexts before the block.
            neighbours_UK: the contexts of each neighbourhood.
            out: where to write it.
        """
        kernel, bias_H = neighbours_UK.shape[1], cast(torch.Tensor, self.conv.bias)
        rows_UK = neighbours_UK * kernel + torch.arange(kernel, device=neighbours_UK.device)
        update_UH = self.activation(F.embedding_bag(rows_UK, said_RH, mode="sum").add_(bias_H))
        return torch.add(update_UH, hidden_CH.index_select(0, neighbours_UK[:, (kernel - 1) // 2]), out=out)


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
        id_of = {symbol: index for index, symbol in enumerate(self.config.symbols, start=_UNKNOWN + 1)}
        # By the number that the pronouncer has for a symbol; the last stands for symbols without a number, -1.
        self._ids = np.array([*(id_of.get(symbol, _UNKNOWN) for symbol in self.pronouncer.symbols), _UNKNOWN])
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
        return self.inputs(self.pronouncer.ways(texts, languages))

    def inputs(self, ways: Ways) -> dict[str, torch.Tensor]:
        """`tokenize` of what `pronouncer`, or one that agrees with it and knows all ways, has said."""
        several = self.config.heteronyms == "mean"
        ways = ways if several else ways.first()
        longest = max(1, int(ways.lengths_R.max(initial=0)))
        ids_RL = np.full((len(ways.lengths_R), longest), _PAD)
        ids_RL[ways.lengths_R == 0, 0] = _UNKNOWN
        ids_RL[np.arange(longest) < ways.lengths_R[:, None]] = self._ids[ways.symbols_S]
        unknown = int((ids_RL == _UNKNOWN).sum())
        if unknown and not self.num_unknown:
            logger.warning("some terms hold symbols outside the model's vocabulary; counted in `num_unknown`")
        self.num_unknown += unknown
        input_ids = torch.from_numpy(ids_RL)
        if several:
            counts_N1 = torch.from_numpy(ways.counts_N)[:, None]
            is_way_NA = torch.arange(int(ways.counts_N.max(initial=1))) < counts_N1
            padded_NAL = input_ids.new_full((*is_way_NA.shape, longest), _PAD)
            padded_NAL[is_way_NA] = input_ids
            input_ids = padded_NAL
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
        if len(self.blocks) and len(input_ids) >= _SHARE_FROM and not (self.training or torch.is_grad_enabled()):
            return self._encode_shared(input_ids)
        # In groups of like length: one long pronunciation would pad all others to several times theirs.
        length_R = attention_mask.sum(-1)
        order_R = length_R.argsort(stable=True)
        pooled = []
        for rows in order_R.split(_GROUP):
            longest = int(length_R[rows[-1]])
            pooled.append(self._encode(input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(pooled)[order_R.argsort()]

    def _encode_shared(self, input_ids_RL: torch.Tensor) -> torch.Tensor:
        """Many pronunciations: what a block makes of a symbol is computed once for each context in which it stands.

        After a block a symbol knows its neighbours, after two of them two to either side: of many terms most have their
        contexts in common, and a block's product is over the contexts of the block before.
        """
        spoken_RL = input_ids_RL != _PAD
        length_R = spoken_RL.sum(1)
        hidden_CH, context_RL = self.embedding.weight, input_ids_RL
        *first_blocks, last_block = cast(Iterable[ConvBlock], self.blocks)
        for block in first_blocks:
            neighbours_UK, number_S = _distinct(self._neighbours(context_RL, spoken_RL), len(hidden_CH))
            said_RH = block.said(hidden_CH)
            after_CH = hidden_CH.new_empty(len(neighbours_UK) + 1, hidden_CH.shape[1])
            after_CH[0] = 0
            for after_BH, neighbours_BK in zip(after_CH[1:].split(_BLOCK), neighbours_UK.split(_BLOCK), strict=True):
                block.after(said_RH, hidden_CH, neighbours_BK, out=after_BH)
            hidden_CH, context_RL = after_CH, torch.zeros_like(context_RL).masked_scatter_(spoken_RL, number_S + 1)
        # Most contexts of the last block are those of one term.
        said_RH = last_block.said(hidden_CH)
        neighbours_SK = self._neighbours(context_RL, spoken_RL)
        dtype = torch.promote_types(hidden_CH.dtype, torch.float32)
        pooled_RH = hidden_CH.new_empty(len(length_R), self.hidden_size, dtype=dtype)
        num_symbols = [int(lengths.sum()) for lengths in length_R.split(_GROUP)]
        groups = zip(pooled_RH.split(_GROUP), length_R.split(_GROUP), neighbours_SK.split(num_symbols), strict=True)
        for pooled_GH, length_G, neighbours_GK in groups:
            hidden_GH = self.norm(last_block.after(said_RH, hidden_CH, neighbours_GK))
            pooled_GH.copy_(pool_runs(hidden_GH, length_G, self.config.segments))
        return pooled_RH

    def _neighbours(self, context_RL: torch.Tensor, spoken_RL: torch.Tensor) -> torch.Tensor:
        """The contexts that a convolution sees at each symbol, (S, K)."""
        before = (self.config.kernel_size - 1) // 2
        padded_RL = F.pad(context_RL, (before, self.config.kernel_size - 1 - before), value=_PAD)
        return padded_RL.unfold(1, self.config.kernel_size, 1)[spoken_RL]

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask_RL1 = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        hidden_RLH = self.embedding(input_ids)
        for block in self.blocks:
            hidden_RLH = block(hidden_RLH, mask_RL1)
        return self._pool(self.norm(hidden_RLH), attention_mask.sum(-1))

    def _pool(self, hidden_RLH: torch.Tensor, length_R: torch.Tensor) -> torch.Tensor:
        row_R = torch.arange(len(length_R), device=length_R.device)
        return pool_pyramid(hidden_RLH, length_R, row_R, torch.zeros_like(length_R), length_R, self.config.segments)


def _distinct(rows_SK: torch.Tensor, num_values: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct rows of numbers below `num_values`, and which of them each row is; faster than `unique(dim=0)`."""
    number_S = rows_SK[:, 0]
    for column_S in rows_SK[:, 1:].unbind(1):
        _, number_S = (number_S * num_values + column_S).unique(return_inverse=True)
    any_of_U = number_S.new_empty(int(number_S.max()) + 1)
    any_of_U[number_S] = torch.arange(len(number_S), device=number_S.device)
    return rows_SK[any_of_U], number_S
