"""The README of a pre-trained audio encoder: what it is, what it was trained on, how well it predicts, its use."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_term_retrieval.pretraining.audio.configuration import NestConfig

_SHOWN = {
    "eval_loss": "loss, nats a hidden token",
    "eval_unigram_entropy": "… of a model that hears nothing (unigram entropy)",
    "eval_accuracy": "accuracy",
    "eval_top_code_share": "… of always saying the most frequent code",
    "eval_codes_used": "codes used",
}


def nest_model_card(config: NestConfig, *, name: str, data: str, metrics: Mapping[str, float], step: int | None) -> str:
    """The card, Markdown with YAML metadata.

    Args:
        config: of the model.
        name: Hub id or folder.
        data: what it was trained on.
        metrics: of an evaluation; may be empty.
        step: that the weights are of.
    """
    encoder = config.encoder
    rows = [f"| {shown} | {metrics[key]:.4g} |" for key, shown in _SHOWN.items() if key in metrics]
    table = ["", "| on clips held out | |", "|---|---|", *rows] if rows else []
    books = f"{config.num_books} × {config.num_codes} codes" if config.num_books > 1 else f"{config.num_codes} codes"
    return f"""---
library_name: qwen_term_retrieval
tags: [audio-pretraining, nest, qwen_term_retrieval]
---
# {name}

A Fast Conformer of {encoder.hidden_size} × {encoder.num_hidden_layers}, 12.5 frames a second, pre-trained by denoising
masked tokens (NEST, Huang et al. 2024; {books}{", normalised windows" if config.normalize_input else ""}) on {data}\
{f", {step} steps" if step else ""}. It writes no text: it is what an encoder begins with.
{chr(10).join(table)}

As the audio tower of a term retriever, trained with it:

```
accelerate launch scripts/train.py --audio_tower {name} --train_audio_tower
```

On its own, from 16 kHz samples:

```python
import torch
from qwen_term_retrieval.audio.decoding import clip_pcm
from qwen_term_retrieval.pretraining.audio import NestForPreTraining

model = NestForPreTraining.from_pretrained("{name}").eval()
pcm = torch.from_numpy(clip_pcm("clip.wav"))[None]
with torch.no_grad():
    frames = model(pcm, torch.tensor([pcm.shape[1]])).frames_BTD
```

`qtr convert-nemo {name} nest.nemo` writes it for NeMo.
"""
