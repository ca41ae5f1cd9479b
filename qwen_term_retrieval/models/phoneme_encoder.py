"""The phoneme encoder: what a term sounds like, as one vector.

Symbols are embedded, mixed by a few residual convolutions, and pooled by the same ordered pyramid as the audio. It
is trained from scratch and small on purpose: 100,000 terms are embedded in seconds on two CPU cores, and what it has
to learn is how sounds sound, not what words mean.

Shapes: N terms, L symbols, H hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.pooling import pool_pyramid
from qwen_term_retrieval.text.phonetics import INSTALL_HINT, GraphemeToPhoneme, PhonemizerError, get_phonemizer

logger = logging.getLogger(__name__)

_PAD, _UNKNOWN = 0, 1
_GROUP = 128


@dataclass
class PhonemeEncoderConfig:
    """Settings of the phoneme encoder.

    `symbols` and `fingerprint` are filled in from the phonemizer; a saved model refuses another phonemizer by them.
    """

    phonemizer: str = "espeak:en-us"
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

    def bind(self) -> GraphemeToPhoneme:
        """The phonemizer of this config, filled in when new and checked when saved.

        Raises:
            PhonemizerError: it is missing here, or gives other symbols than the model was trained with.
        """
        phonemizer = get_phonemizer(self.phonemizer)
        fingerprint = phonemizer.fingerprint()
        if not self.symbols:
            self.symbols, self.fingerprint = list(phonemizer.symbols), fingerprint
        if self.fingerprint != fingerprint:
            raise PhonemizerError(
                f"the phonemizer {self.phonemizer!r} of this machine pronounces the probe words differently "
                f"({fingerprint}) from the one the model was trained with ({self.fingerprint}), so its terms would be "
                f"wrong. Install the package versions the model was trained with: {INSTALL_HINT}"
            )
        return phonemizer


class _ConvBlock(nn.Module):
    def __init__(self, config: PhonemeEncoderConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, config.kernel_size, padding="same")
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_NLH: torch.Tensor, mask_NL1: torch.Tensor) -> torch.Tensor:
        # Padding is zeroed before each convolution, so that a term's vector does not depend on its batch mates.
        update_NLH = self.conv((self.norm(hidden_NLH) * mask_NL1).transpose(1, 2)).transpose(1, 2)
        return hidden_NLH + self.dropout(F.gelu(update_NLH))


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
        self.phonemizer = self.config.bind()
        self._id_of = {symbol: index for index, symbol in enumerate(self.config.symbols, start=_UNKNOWN + 1)}
        self.num_unknown = 0
        self.embedding = nn.Embedding(len(self.config.symbols) + 2, self.config.hidden_size, padding_idx=_PAD)
        self.blocks = nn.ModuleList(_ConvBlock(self.config) for _ in range(self.config.num_blocks))
        self.norm = nn.LayerNorm(self.config.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Size of the pooled vector: one part a segment of the pyramid."""
        return sum(self.config.segments) * self.config.hidden_size

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Symbol ids and mask, (N, L) int64 each, on the CPU.

        A symbol outside the vocabulary becomes the unknown symbol and is counted in `num_unknown`; so does a text
        that has no sound at all.
        """
        rows = [
            [self._id_of.get(symbol, _UNKNOWN) for symbol in symbols] or [_UNKNOWN]
            for symbols in self.phonemizer.phonemes(texts)
        ]
        unknown = sum(row.count(_UNKNOWN) for row in rows)
        if unknown and not self.num_unknown:
            logger.warning("some terms hold symbols outside the model's vocabulary; counted in `num_unknown`")
        self.num_unknown += unknown
        longest = max(map(len, rows), default=1)
        input_ids_NL = torch.tensor([row + [_PAD] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return {"input_ids": input_ids_NL, "attention_mask": (input_ids_NL != _PAD).long()}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (N, hidden_size) of symbol ids and mask, (N, L) each.

        Terms are taken in groups of like length: one long term would otherwise pad all others to several times theirs.
        """
        length_N = attention_mask.sum(-1)
        order_N = length_N.argsort(stable=True)
        pooled = []
        for rows in order_N.split(_GROUP):
            longest = int(length_N[rows[-1]])
            pooled.append(self._encode(input_ids[rows, :longest], attention_mask[rows, :longest]))
        return torch.cat(pooled)[order_N.argsort()]

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask_NL1 = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        hidden_NLH = self.embedding(input_ids)
        for block in self.blocks:
            hidden_NLH = block(hidden_NLH, mask_NL1)
        length_N = attention_mask.sum(-1)
        row_N = torch.arange(len(length_N), device=length_N.device)
        start_N = torch.zeros_like(length_N)
        return pool_pyramid(self.norm(hidden_NLH), length_N, row_N, start_N, length_N, self.config.segments)
