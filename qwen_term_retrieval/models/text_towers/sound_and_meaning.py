"""Two text towers in one: what a term sounds like and what it means, weighed by a learned gate.

Sound finds a term that is spoken; meaning helps where the words are few and the sounds alike, and lets a term be found
by a chunk that paraphrases it. Each side is projected to one size and the gate, a number between 0 and 1 for every
term, mixes them. It opens on the side of sound, because what is heard is sounds.

Shapes: N terms, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.models.text_towers.text_encoder import HFTextEncoder

# sigmoid(2) = 0.88 of sound before anything is learned.
_FIRST_GATE = 2.0


class SoundAndMeaning(nn.Module):
    """The gated sum of a phoneme encoder and a pretrained text encoder.

    Args:
        sound: a phoneme encoder.
        meaning: a text encoder.
        hidden_size: the size both are projected to.
    """

    def __init__(self, sound: PhonemeEncoder, meaning: HFTextEncoder, hidden_size: int = 512):
        super().__init__()
        self.sound, self.meaning = sound, meaning
        self.hidden_size = hidden_size
        self.sound_projection = nn.Linear(sound.hidden_size, hidden_size)
        self.meaning_projection = nn.Linear(meaning.hidden_size, hidden_size)
        # The bias is a parameter of its own: the initialisation of a `PreTrainedModel` sets those of layers to 0.
        self.gate = nn.Linear(2 * hidden_size, 1, bias=False)
        self.gate_bias = nn.Parameter(torch.tensor(_FIRST_GATE))

    def settings(self) -> dict[str, Any]:
        return {"sound": self.sound.settings(), "meaning": self.meaning.settings(), "hidden_size": self.hidden_size}

    def tokenize(self, texts: Sequence[str], languages: Sequence[str | None] | None = None) -> dict[str, torch.Tensor]:
        """The inputs of both towers, each by its name: `sound_input_ids`, `meaning_input_ids` …."""
        sound, meaning = self.sound.tokenize(texts, languages), self.meaning.tokenize(texts)
        return {
            **{f"sound_{name}": values for name, values in sound.items()},
            **{f"meaning_{name}": values for name, values in meaning.items()},
        }

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (N, hidden_size) of what `tokenize` gave."""
        sound_NH = self._side("sound", inputs)
        meaning_NH = self._side("meaning", inputs)
        gate_N1 = torch.sigmoid(self.gate_bias + self.gate(torch.cat([sound_NH, meaning_NH], dim=-1)))
        return gate_N1 * sound_NH + (1 - gate_N1) * meaning_NH

    def _side(self, name: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        own = {key.removeprefix(f"{name}_"): values for key, values in inputs.items() if key.startswith(f"{name}_")}
        projection: Any = self.get_submodule(f"{name}_projection")
        pooled_NH = self.get_submodule(name)(**own)
        return F.normalize(projection(pooled_NH.to(projection.weight.dtype)), dim=-1)
