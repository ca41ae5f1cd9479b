"""The peer of part `step`: sentence-transformers training the same towers with its own trainer and loss.

Its `Router` sends clips to a `Transformer` module with Whisper's encoder and strings to one with the text encoder; each
is mean-pooled and mapped into the shared space by a `Dense` module. Its audio path pads to 30 s, because that is what
Whisper's stock encoder takes. Its best settings, not its defaults: LoRA in the audio tower and both base towers frozen,
as ours; clips handed over as float32 arrays out of the same memory-mapped pack; the precision and the number of
DataLoader workers that ours has; no checkpoints, no evaluation, no model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, WhisperFeatureExtractor

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint


class Peer:
    """A model of sentence-transformers with its trainer.

    Args:
        encoder: Whisper's, the weights of which it takes, as they are before anyone trains them.
        text_tower: name of a text encoder.
        folder: for the audio encoder in the layout that sentence-transformers loads.
        rows: clips with their texts.
        lora: fields of `peft.LoraConfig`.
        settings: of the trainer's arguments.
        callbacks: of its trainer.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        text_tower: str,
        folder: Path,
        rows: datasets.Dataset,
        *,
        embedding_dim: int,
        temperature: float,
        lora: dict[str, Any],
        settings: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> None:
        # Saved alone: of a whole Whisper checkpoint `Transformer` loads no tensor of the encoder, and only warns (6.2).
        encoder.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins).save_pretrained(folder)
        audio = Transformer(str(folder))
        text = Transformer(str(resolve_checkpoint(text_tower)))
        self.encoder = audio.auto_model
        for tower in (audio, text):
            tower.auto_model.requires_grad_(False)
        self.encoder.add_adapter(LoraConfig(**lora))
        router = Router(
            {"audio": _route(audio, embedding_dim), "text": _route(text, embedding_dim)},
        )
        self.model = SentenceTransformer(modules=[router, Normalize()])
        self.trainer = SentenceTransformerTrainer(
            model=self.model,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(folder / "run"), router_mapping={"audio": "audio", "text": "text"}, **settings
            ),
            train_dataset=rows.select_columns(["audio", "text"]).with_transform(_float_arrays),
            loss=MultipleNegativesRankingLoss(self.model, scale=1 / temperature),
            callbacks=callbacks,
        )
        self.trainer.remove_callback(PrinterCallback)


def _route(tower: Transformer, embedding_dim: int) -> list[Any]:
    size = tower.get_embedding_dimension()
    return [tower, Pooling(size, "mean"), Dense(size, embedding_dim, activation_function=None)]


def _float_arrays(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    clips = [np.asarray(clip["array"]) for clip in batch["audio"]]
    return {"audio": [{"array": clip, "sampling_rate": SAMPLING_RATE} for clip in clips], "text": batch["text"]}
