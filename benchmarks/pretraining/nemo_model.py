"""NeMo's model with the very weights of one of ours, by way of a `.nemo` file; runs where NeMo is."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from qwen_term_retrieval.pretraining.audio import NestConfig, NestForPreTraining
from qwen_term_retrieval.pretraining.audio.nemo import write_nemo


def heard_weights(model: NestForPreTraining, seed: int = 0) -> NestForPreTraining:
    """The model with norms and biases that matter: those of a new one do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if name.startswith("encoder.") and values.dim() == 1 and values.is_floating_point():
                values.add_(torch.randn(values.shape, generator=generator) * 0.1)
                if name.endswith("running_var"):
                    values.abs_().add_(0.1)
    return model


def small_model(**settings: Any) -> NestForPreTraining:
    """Of the size of the demo."""
    torch.manual_seed(0)
    return heard_weights(NestForPreTraining(NestConfig.of_size("demo", **settings)))


def in_nemo(model: NestForPreTraining) -> Any:
    """NeMo's `EncDecDenoiseMaskedTokenPredModel` with these weights, in evaluation mode."""
    logging.getLogger("nemo_logger").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    from nemo.collections.asr.models.ssl_models import EncDecDenoiseMaskedTokenPredModel
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.nemo")
        write_nemo(model, file)
        return EncDecDenoiseMaskedTokenPredModel.restore_from(str(file), map_location="cpu").eval()
