"""The phoneme head: which sound is heard when, as log-probabilities of CTC on the audio tower's frames.

A window says that a term is near; the head says what was heard, sound by sound, so that a term can be aligned with the
frames and searched by its pronunciation. It is a learned mix of the tower's layers, a projection, and a few residual
convolutions: 1.2M parameters on Whisper-base.

CTC needs a frame of its own for every sound, and one more between two that are the same. A tower slower than about 40
frames a second has too few (people say 10 to 20 sounds a second, with blanks between them), so each of its frames gives
several sub-frames.

Shapes: B clips, T frames of the tower, L layers of the tower, H its hidden size, U sub-frames of the clip, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.text_towers.phoneme_encoder import ConvBlock
from qwen_term_retrieval.text.alphabet import BLANK, Alphabet

_FRAMES_WANTED = 50.0  # a second
_FRAMES_ENOUGH = 40.0


@dataclass
class PhonemeHeadConfig:
    """Settings of the phoneme head; `symbols`, `fingerprint` and `sub_frames` are filled in when it is made."""

    phonemizer: str = "espeak:en-us"
    """Pronounces texts in its own language or one unsaid, see `Pronouncer`."""
    languages: dict[str, str] = field(default_factory=dict)
    """Phonemizers of the other languages."""
    hidden_size: int = 256
    """Width of the convolutions."""
    num_blocks: int = 3
    """Residual convolution blocks; each looks (kernel_size - 1) / 2 sub-frames to either side."""
    kernel_size: int = 5
    dropout: float = 0.1
    sub_frames: int = 0
    """How many each frame of the tower gives."""
    symbols: list[str] = field(default_factory=list)
    fingerprint: str = ""


def sub_frames_at(frame_rate: float) -> int:
    """How many sub-frames each frame of a tower gives, so that there are about 50 a second.

    >>> [sub_frames_at(rate) for rate in (50, 25, 13, 12.5)]
    [1, 2, 4, 4]
    """
    return 1 if frame_rate >= _FRAMES_ENOUGH else round(_FRAMES_WANTED / frame_rate)


class PhonemeHead(nn.Module):
    """Frames of an audio tower to log-probabilities of sounds.

    Args:
        settings: fields of `PhonemeHeadConfig`.
        frame_size: H.
        num_layers: L, mixed by a learned softmax.
        frame_rate: of the tower, in frames a second.

    Raises:
        ValueError: a setting that there is not.
        PhonemizerError: see `Alphabet`.

    Example:
        >>> head = PhonemeHead({"phonemizer": "characters"}, frame_size=512, num_layers=1, frame_rate=12.5)
        >>> log_probs, lengths = head(torch.zeros(2, 10, 512), torch.tensor([10, 7]))
        >>> log_probs.shape[1], lengths.tolist()
        (40, [40, 28])
    """

    def __init__(self, settings: dict[str, Any], *, frame_size: int, num_layers: int, frame_rate: float):
        super().__init__()
        try:
            self.config = PhonemeHeadConfig(**settings)
        except TypeError as error:
            raise ValueError(f"phoneme_head: {error}; see PhonemeHeadConfig for its fields") from error
        config = self.config
        self.alphabet = Alphabet(
            config.phonemizer, config.languages, symbols=config.symbols, fingerprint=config.fingerprint
        )
        config.symbols, config.fingerprint = list(self.alphabet.symbols), self.alphabet.fingerprint
        config.sub_frames = config.sub_frames or sub_frames_at(frame_rate)
        self.frame_rate = frame_rate * config.sub_frames
        if num_layers > 1:
            self.layer_mix = nn.Parameter(torch.zeros(num_layers))
        self.norm = nn.LayerNorm(frame_size)
        self.projection = nn.Linear(frame_size, config.hidden_size)
        if config.sub_frames > 1:
            self.split = nn.Linear(config.hidden_size, config.sub_frames * config.hidden_size)
        sizes = (config.hidden_size, config.kernel_size, config.dropout)
        self.blocks = nn.ModuleList(ConvBlock(*sizes) for _ in range(config.num_blocks))
        self.last_norm = nn.LayerNorm(config.hidden_size)
        self.classes = nn.Linear(config.hidden_size, self.alphabet.num_classes)

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)

    def forward(self, frames_BTH: torch.Tensor, num_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (B, U, C), float32 or wider, and how many sub-frames each clip has; anything behind them.

        Args:
            frames_BTH: what `TermRetrievalModel.audio_frames` gives: (B, T, H), or (B, L, T, H).
            num_frames_B: of each clip.
        """
        dtype = self.projection.weight.dtype
        if frames_BTH.dim() == 4:
            frames_BTH = torch.einsum("blth,l->bth", frames_BTH.to(dtype), self.layer_mix.softmax(0))
        hidden_BUH = self.projection(self.norm(frames_BTH.to(dtype)))
        if self.config.sub_frames > 1:
            hidden_BUH = self.split(F.gelu(hidden_BUH)).unflatten(-1, (self.config.sub_frames, -1)).flatten(1, 2)
        num_B = num_frames_B.to(hidden_BUH.device) * self.config.sub_frames
        mask_BU1 = (torch.arange(hidden_BUH.shape[1], device=num_B.device) < num_B[:, None]).unsqueeze(-1)
        for block in self.blocks:
            hidden_BUH = block(hidden_BUH, mask_BU1)
        logits_BUC = self.classes(self.last_norm(hidden_BUH))
        # Half precision would cost the alignment its last digits, and CTC has no kernel for it.
        return F.log_softmax(logits_BUC.to(torch.promote_types(logits_BUC.dtype, torch.float32)), dim=-1), num_B

    def nll(
        self,
        log_probs_BUC: torch.Tensor,
        num_B: torch.Tensor,
        phonemes_BP: torch.Tensor,
        num_phonemes_B: torch.Tensor,
    ) -> torch.Tensor:
        """Negative log-likelihood of what is said in each clip, by the sound: (B,).

        Zero where nothing is known to be said, and where the clip is too short for it.
        """
        nll_B = F.ctc_loss(
            log_probs_BUC.transpose(0, 1),
            phonemes_BP.long(),
            num_B,
            num_phonemes_B,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return torch.where(num_phonemes_B > 0, nll_B / num_phonemes_B.clamp(min=1), torch.zeros_like(nll_B))


def best_path(log_probs_UC: torch.Tensor) -> list[int]:
    """The classes that are heard when each sub-frame decides by itself: repeats joined, blanks left out."""
    collapsed = torch.unique_consecutive(log_probs_UC.argmax(dim=-1))
    return collapsed[collapsed != BLANK].tolist()
