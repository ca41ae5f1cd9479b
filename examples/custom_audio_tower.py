"""Add an audio encoder that the library does not know: Voxtral's, which is Whisper's under names of its own.

python examples/custom_audio_tower.py            # two layers with random weights: no download, and no sense

Where this file has been imported, `TermRetrievalConfig(audio_tower="mistralai/Voxtral-Mini-3B-2507")` finds the tower.
"""

import argparse

from transformers import VoxtralEncoder, VoxtralEncoderConfig

from qwen_term_retrieval import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.audio_towers import WhisperTower, register_audio_tower


@register_audio_tower
class VoxtralTower(WhisperTower):
    """Its layers and spectrogram are Whisper's; only the classes, and where a checkpoint keeps them, differ."""

    model_types = ("voxtral", "voxtral_encoder")  # `model_type` of the config.json it is found by
    encoder_class = VoxtralEncoder
    config_class = VoxtralEncoderConfig
    weight_prefixes = ("audio_tower.", "model.audio_tower.", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", nargs="?", default="builders/term_audio/demo/test/kokoro-am_michael/0077.ogg")
    args = parser.parse_args()
    tiny = {"model_type": "voxtral_encoder", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=tiny | {"intermediate_size": 128}))
    heard = model.encode_audio([args.recording])
    tower = type(model.audio_tower).__name__
    print(f"{tower}, {model.frame_rate:g} frames a second: vectors {tuple(heard.vectors.shape)}")
