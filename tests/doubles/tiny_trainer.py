"""A training run of a second, for tests of what a run writes, pushes and reports."""

from pathlib import Path

import datasets
import torch

import qwen_term_retrieval  # noqa: F401  registers the feature and the builder
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

TINY_TOWER = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 1}
TINY_TOWER |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}


def tiny_model(**changes):
    """Without pretrained weights."""
    torch.manual_seed(0)
    return TermRetrievalModel(
        TermRetrievalConfig(
            audio_tower=TINY_TOWER,
            text_tower="phonemes:characters",
            text_tower_config={"hidden_size": 16},
            embedding_dim=16,
            segments=(1,),
            **changes,
        )
    )


def make_tiny_trainer(output_dir, callbacks=(), *, frozen=False, num_clips=16, **settings):
    """A trainer of a tiny model without pretrained weights on clips of the demo corpus: of 16, two steps an epoch.

    frozen: the audio tower is, and its frames are cached.
    """
    rows = datasets.load_dataset(str(Path(__file__).parents[2] / "builders/term_audio"))
    spoken = rows["train"].filter(lambda terms: len(terms) == 1, input_columns="terms")
    args = TermRetrievalArguments(
        output_dir=str(output_dir),
        **{
            "use_cpu": True,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "patience": 0,
            "disable_tqdm": True,
            **settings,
        },
    )
    model = tiny_model()
    if frozen:
        model.train_audio_tower(False)
    trainer = TermRetrievalTrainer(
        model,
        args,
        spoken.select(range(num_clips)),
        rows["validation"].select(range(16)),
        callbacks=list(callbacks),
    )
    trainer.card_data = "Sixteen clips."
    return trainer
