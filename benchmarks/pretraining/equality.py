"""Whether ours computes what NeMo computes: mel frames, tokens, frames, loss and gradients of one model in both.

NeMo's model gets our weights by a `.nemo` file, so that this reads and writes one too. Masks are drawn by either rule
and compared with the formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.pretraining.nemo_model import in_nemo, small_model
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.loading import load_rows
from qwen_term_retrieval.pretraining.audio import NestConfig
from qwen_term_retrieval.pretraining.audio.masking import BlockMask
from qwen_term_retrieval.pretraining.audio.nemo import our_name

_TIE = 1e-6


def measure_equality(num_clips: int) -> dict[str, Any]:
    rows = load_rows("builders/term_audio")["train"]
    reader = ClipReader(rows)
    own = small_model().eval()
    nemo = in_nemo(own)
    pcm_BS, num_samples_B = reader.gather(np.linspace(0, len(rows) - 1, num_clips).astype(int))
    noisy_BS, _ = reader.gather(np.linspace(9, len(rows) - 10, num_clips).astype(int))
    noisy_BS = (pcm_BS // 2).add(_as_wide(noisy_BS, pcm_BS.shape[1]) // 3)
    mask = own.mask(num_samples_B, list(range(num_clips)))
    found: dict[str, Any] = {"clips": num_clips}
    with torch.no_grad():
        theirs_BFM, _ = nemo.preprocessor(input_signal=pcm_BS / 32768, length=num_samples_B)
        mel_BMF, num_mel_B = own.mel(pcm_BS, num_samples_B)
        theirs_BMF = theirs_BFM.transpose(1, 2)[:, : mel_BMF.shape[1]]
        found["mel, greatest difference"] = float((mel_BMF - theirs_BMF).abs().max())
        found |= _tokens(own, nemo, mel_BMF, num_mel_B)
    # From here on both read the same mel frames.
    noisy_BMF, _ = own.mel(noisy_BS, num_samples_B)
    output = own(mel_BMF=mel_BMF, num_mel_B=num_mel_B, noisy_mel_BMF=noisy_BMF, mask=mask)
    masks_BFM = mask[:, None].float().expand(-1, 80, -1)
    width = -mel_BMF.shape[1] % 8
    masks_BFM = torch.nn.functional.pad(masks_BFM, (0, width))
    heard_BFM = torch.where(mask[:, None], nemo.mask_processor.mask_embedding[:, None], noisy_BMF.transpose(1, 2))
    heard_BFM = torch.nn.functional.pad(heard_BFM, (0, width))
    encoded_BDT, num_frames_B = nemo.encoder(audio_signal=heard_BFM, length=num_mel_B)
    log_probs = nemo.decoder(encoder_output=encoded_BDT)
    loss = nemo.loss(
        masks=masks_BFM, decoder_outputs=log_probs, targets=output.tokens_BTH, decoder_lengths=num_frames_B
    )
    valid_BT = torch.arange(output.frames_BTD.shape[1]) < num_frames_B[:, None]
    difference = (output.frames_BTD - encoded_BDT.transpose(1, 2)[:, : valid_BT.shape[1]])[valid_BT]
    found["encoder, greatest difference"] = float(difference.abs().max())
    found["loss, difference"] = abs(float(output.loss) - float(loss))
    output.loss.backward()
    loss.backward()
    own_named = dict(own.named_parameters())
    differences = [
        float((own_named[our_name(name)].grad - values.grad.view_as(own_named[our_name(name)])).abs().max())
        for name, values in nemo.named_parameters()
        if values.grad is not None
    ]
    found["gradients, greatest difference"] = max(differences)
    return found


def _as_wide(values_BS: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(values_BS, (0, max(0, width - values_BS.shape[1])))[:, :width]


def _tokens(own: Any, nemo: Any, mel_BMF: torch.Tensor, num_mel_B: torch.Tensor) -> dict[str, Any]:
    wide_BMF = torch.nn.functional.pad(mel_BMF, (0, 0, 0, -mel_BMF.shape[1] % 8))
    _, theirs_BTH = nemo.quantizer(input_signal=wide_BMF.transpose(1, 2))
    tokens_BTH = own.quantizer(mel_BMF)
    valid_BT = torch.arange(tokens_BTH.shape[1]) < -(-num_mel_B // 8)[:, None]
    differ_N = (tokens_BTH != theirs_BTH)[..., 0][valid_BT]
    windows_NV = wide_BMF.unflatten(1, (-1, 8)).flatten(2)[valid_BT][differ_N].double()
    scores_NC = torch.nn.functional.normalize(windows_NV @ own.quantizer.projection.double().T, dim=-1)
    scores_NC = scores_NC @ own.quantizer.codes_HCK[0].double().T
    best_N2 = scores_NC.topk(2, dim=-1).values if len(scores_NC) else torch.zeros(0, 2)
    return {
        "tokens": int(valid_BT.sum()),
        "tokens that differ": int(differ_N.sum()),
        "of them no ties": int(((best_N2[:, 0] - best_N2[:, 1]) > _TIE).sum()),
    }


def measure_masks(draws: int) -> dict[str, Any]:
    """Rates of hidden frames against the formula, in standard errors, and clips without any."""
    found: dict[str, Any] = {}
    for length in (60, 100, 300, 1500):
        rule, least_one = (BlockMask.of(NestConfig(min_blocks=number)) for number in (0, 1))
        hidden_BM = rule([length] * draws, range(draws)).numpy()
        rate_M = rule.rate(length)
        error_M = np.sqrt(rate_M * (1 - rate_M) / draws)
        known_M = error_M > 0
        errors_M = np.abs(hidden_BM.mean(0) - rate_M)[known_M] / error_M[known_M]
        free = (1 - rule.probability) ** (length - rule.block)
        found[f"{length / 100:g} s"] = {
            "worst frame, standard errors": float(errors_M.max()),
            "frames": int(known_M.sum()),
            "clips without any, NeMo's rule": float(1 - hidden_BM.any(1).mean()),
            "by the formula": float(free),
            "clips without any, ours": float(1 - least_one([length] * draws, range(draws)).numpy().any(1).mean()),
        }
    return found
