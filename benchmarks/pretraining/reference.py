"""What NeMo 3.0.0 gives for a tiny model and two clips, kept for the tests, which run without NeMo.

    python -m benchmarks.pretraining.reference tests/pretraining/audio

writes `nemo.nemo`, as NeMo saves it, and `nemo.npz`: the clips, their mel frames, tokens, a mask, and encoded frames,
log-probabilities, loss and gradients under that mask, without dropout, batch normalisation as in evaluation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import torch

from benchmarks.pretraining.nemo_model import heard_weights, in_nemo
from benchmarks.pretraining.nemo_venv import has_nemo, run_with_nemo
from qwen_term_retrieval.pretraining.audio import NestConfig, NestForPreTraining

ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "subsampling_conv_channels": 4,
}  # fmt: skip
GRADIENTS = (
    "encoder.pre_encode.conv.0.weight", "encoder.pre_encode.out.weight", "encoder.layers.0.conv.depthwise_conv.weight",
    "encoder.layers.0.self_attn.pos_bias_v", "encoder.layers.1.self_attn.linear_pos.weight",
    "encoder.layers.1.norm_out.weight", "decoder.decoder_layers.0.weight",
)  # fmt: skip


def make(folder: Path) -> None:
    torch.manual_seed(0)
    nemo = in_nemo(heard_weights(NestForPreTraining(NestConfig(encoder_config=ENCODER, num_books=2, num_codes=64))))
    nemo.save_to(str(folder / "nemo.nemo"))
    # Two clips of the demo corpus, and two others over them.
    rows = datasets.load_dataset("builders/term_audio", split="train")
    said, other = ([row["audio"].pcm for row in rows.select(numbers)] for numbers in ((3, 700), (1100, 40)))
    lengths = [min(len(each), 24_000) for each in said]
    clean_BS = np.zeros((2, max(lengths)))
    for row, (pcm, length) in enumerate(zip(said, lengths, strict=True)):
        clean_BS[row, :length] = pcm[:length]
    noisy_BS = clean_BS + np.stack([np.resize(pcm, max(lengths)) for pcm in other]) * 0.5
    num_samples_B = np.array(lengths)
    found = {"num_samples_B": num_samples_B}
    mels = []
    for name, wave_BS in (("clean", clean_BS), ("noisy", noisy_BS)):
        pcm_BS = np.clip(np.round(wave_BS), -32768, 32767).astype(np.int16)
        pcm_BS[np.arange(pcm_BS.shape[1]) >= num_samples_B[:, None]] = 0
        found[f"{name}_pcm_BS"] = pcm_BS
        mel_BFM, num_mel_B = nemo.preprocessor(
            input_signal=torch.from_numpy(pcm_BS / np.float32(32768)), length=torch.from_numpy(num_samples_B)
        )
        mels.append(mel_BFM)
        found[f"{name}_mel_BMF"] = mel_BFM.transpose(1, 2).numpy()
    _, tokens_BTH = nemo.quantizer(input_signal=mels[0])
    mask_BM = torch.zeros(2, mels[0].shape[2])
    mask_BM[0, 5:45] = mask_BM[1, 8:48] = 1
    masks_BFM = mask_BM[:, None].expand_as(mels[1])
    masked_BFM = torch.where(masks_BFM > 0, nemo.mask_processor.mask_embedding[:, None], mels[1])
    encoded_BDT, num_frames_B = nemo.encoder(audio_signal=masked_BFM, length=num_mel_B)
    log_probs = nemo.decoder(encoder_output=encoded_BDT)
    loss = nemo.loss(masks=masks_BFM, decoder_outputs=log_probs, targets=tokens_BTH, decoder_lengths=num_frames_B)
    loss.backward()
    found |= {
        "tokens_BTH": tokens_BTH.numpy(), "mask_BM": mask_BM.bool().numpy(), "num_mel_B": num_mel_B.numpy(),
        "num_frames_B": num_frames_B.numpy(), "frames_BTD": encoded_BDT.transpose(1, 2).detach().numpy(),
        "log_probs_BTCH": log_probs.detach().numpy(), "loss": loss.detach().numpy(),
    }  # fmt: skip
    named = dict(nemo.named_parameters())
    found |= {f"gradient {name}": named[name].grad.numpy() for name in GRADIENTS}
    np.savez_compressed(folder / "nemo.npz", **found)


if __name__ == "__main__":
    if has_nemo():
        make(Path(sys.argv[1]))
    else:
        run_with_nemo("benchmarks.pretraining.reference", *sys.argv[1:])
