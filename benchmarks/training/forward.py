"""Part `forward`: Qwen2-Audio's encoder on 3 s clips, ours beside the stock `Qwen2AudioEncoder` at its 30 s.

Both run the very same module, of the real size and with random weights: the stock row through its own `forward` on mel
frames of `WhisperFeatureExtractor` and with the attention mask that `Qwen2AudioForConditionalGeneration` gives it, ours
through `Qwen2AudioTower`. Outputs are compared on the clips' own frames before anything is timed. Judged are the
encoders alone; the spectrograms, listed beside them, have a part of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import WhisperFeatureExtractor
from transformers.masking_utils import create_bidirectional_mask

from benchmarks.training.clips import three_second_clips, waves
from benchmarks.training.measure import Row, comparison, encoder_flops, largest_difference, take_turns
from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.audio_towers import Qwen2AudioTower
from qwen_term_retrieval.models.audio_towers.tower import frame_mask

AT_LEAST = 9.0
TOLERANCE = 1e-4
OURS, STOCK = "ours, encoder", "stock, encoder"
OURS_MEL, STOCK_MEL = "ours, spectrogram", "stock, spectrogram"
# The defaults of the config are those of Qwen2-Audio-7B: 32 layers of 1280, 637M parameters.
REAL_SIZE: dict[str, Any] = {"model_type": "qwen2_audio_encoder"}


def run(
    device: torch.device, *, encoder_config: dict[str, Any] = REAL_SIZE, num_clips: int = 4, repetitions: int = 3
) -> dict[str, Any]:
    """Times of one batch of clips, in float32 on a CPU and bfloat16 on a GPU."""
    torch.manual_seed(0)
    tower = Qwen2AudioTower(encoder_config).eval().to(device)
    clips = three_second_clips(num_clips)
    with torch.no_grad():
        # On a GPU in float64: its float32 convolutions round to TF32, and differently for each shape.
        difference = outputs_difference(tower.double() if device.type == "cuda" else tower, clips, device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        tower = tower.to(dtype)
        own_mel, num_mel_B = tower.mel(*own_inputs(clips, device))
        num_mel_B = num_mel_B.to(device)
        stock_mel, _ = stock_inputs(tower, clips, device)
        mask = stock_mask(tower, num_mel_B)

        def ours() -> torch.Tensor:
            return tower.encode(own_mel, num_mel_B)[0]

        runs = {
            OURS: ours,
            STOCK: lambda: tower.encoder(stock_mel, attention_mask=mask).last_hidden_state,
            OURS_MEL: lambda: tower.mel(*own_inputs(clips, device)),
            STOCK_MEL: lambda: stock_inputs(tower, clips, device),
        }
        rows = own_and_stock_rows()
        # On a CPU the comparison of outputs has warmed everything up, and a stock pass takes most of a minute.
        take_turns(rows, runs, repetitions, device, warm_up=device.type == "cuda")
        rows[OURS].flops = num_clips * encoder_flops(tower.encoder, lambda: tower.encode(own_mel[:1], num_mel_B[:1])[0])
        rows[STOCK].flops = num_clips * encoder_flops(
            tower.encoder, lambda: tower.encoder(stock_mel[:1]).last_hidden_state
        )
        found = comparison(rows, ours=OURS, against=STOCK, at_least=AT_LEAST, device=device, dtype=dtype, profiled=ours)
    whole = (rows[STOCK].median + rows[STOCK_MEL].median) / (rows[OURS].median + rows[OURS_MEL].median)
    return found | {
        "clips": num_clips,
        "parameters": sum(values.numel() for values in tower.parameters()),
        "largest_difference_on_valid_frames": difference,
        "from_samples_to_frames_faster_by": whole,
    }


def own_and_stock_rows() -> dict[str, Row]:
    return {
        OURS: Row("the frames of 3 s and of four guard frames of silence"),
        STOCK: Row("`Qwen2AudioEncoder.forward` at 30 s, with its attention mask", beside=OURS),
        OURS_MEL: Row("from int16 samples, on the device"),
        STOCK_MEL: Row("`WhisperFeatureExtractor`, padded to 30 s, and to the device", beside=OURS_MEL),
    }


def own_inputs(clips: list[Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    pcm_BS, num_samples_B = pad_pcm(clips)
    return pcm_BS.to(device), num_samples_B


def stock_inputs(tower: Qwen2AudioTower, clips: list[Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mel frames (B, M, 3000) and how many of them are each clip's own, as the stock processor makes them."""
    extractor = WhisperFeatureExtractor(feature_size=tower.encoder.config.num_mel_bins)
    features = extractor(waves(clips), sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True)
    return features["input_features"].to(device), features["attention_mask"].sum(-1).to(device)


def stock_mask(tower: Qwen2AudioTower, num_mel_B: torch.Tensor) -> Any:
    """What the stock model gives its encoder: no frame attends to the silence behind a clip.

    The encoder's docstring calls it unused; without it every output differs (transformers 5.23).
    """
    encoder = tower.encoder
    num_frames_B, _ = encoder._get_feat_extract_output_lengths(num_mel_B)
    width = encoder.config.max_source_positions
    hidden_BTH = torch.empty(len(num_mel_B), width, 1, dtype=encoder.dtype, device=num_mel_B.device)
    valid_BT = frame_mask(num_frames_B, width).long()
    return create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden_BTH, attention_mask=valid_BT)


def outputs_difference(tower: Qwen2AudioTower, clips: list[Any], device: torch.device) -> float:
    """Largest difference between our frames and the stock path's, from samples on.

    Raises:
        OutputsDifferError: it is above the tolerance.
    """
    frames_BTH, num_frames_B = tower(*own_inputs(clips, device))
    mel_BMT, num_mel_B = stock_inputs(tower, clips, device)
    stock_BTH = tower.encoder(mel_BMT, attention_mask=stock_mask(tower, num_mel_B)).last_hidden_state
    _, stock_frames_B = tower.encoder._get_feat_extract_output_lengths(num_mel_B)
    ours, stock = (
        torch.cat([row[:count] for row, count in zip(rows, counts.tolist(), strict=True)])
        for rows, counts in ((frames_BTH, num_frames_B), (stock_BTH, stock_frames_B))
    )
    return largest_difference(ours, stock, TOLERANCE, "encoder frames")
