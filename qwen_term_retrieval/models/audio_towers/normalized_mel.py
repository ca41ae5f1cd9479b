"""Spectrograms that are normalised clip by clip, on the device, for the towers that were trained on them.

`parakeet_mel` equals `ParakeetFeatureExtractor`, `kaldi_fbank` equals `SeamlessM4TFeatureExtractor` (Wav2Vec2-BERT's),
each run on a clip alone. Mean and spread of every mel bin are taken over the clip's own frames.

Shapes: B clips, S samples, T mel frames (10 ms), M mel bins, F frequencies, X samples of a frame.
"""

from __future__ import annotations

import functools

import torch
from transformers.audio_utils import mel_filter_bank, window_function

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES, silenced_wave, slaney_filters

_FRAME_SAMPLES = 400
_FFT_SAMPLES = 512
_PREEMPHASIS = 0.97
_PARAKEET_FLOOR = 2**-24
_KALDI_FLOOR = 1.192092955078125e-07


@functools.lru_cache(maxsize=16)
def _kaldi_filters(num_mel_bins: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    filters = mel_filter_bank(
        num_frequency_bins=_FFT_SAMPLES // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=20,
        max_frequency=SAMPLING_RATE // 2,
        sampling_rate=SAMPLING_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    window_X = torch.from_numpy(window_function(_FRAME_SAMPLES, "povey", periodic=False)).to(device, torch.float32)
    return window_X, torch.from_numpy(filters).to(device, torch.float32)


def parakeet_mel(
    pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, *, num_mel_bins: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel frames of pre-emphasised speech, one per whole 10 ms.

    Args:
        pcm_BS: int16, or floats in [-1, 1); 16 kHz. What lies behind a clip's end is ignored.
        num_samples_B: samples of each clip, at least 320: one frame has no spread.
        num_mel_bins: 80 or 128, as the tower wants.

    Returns:
        float32 mel_BTM, zero behind a clip's last frame, and the number of frames of each clip.
    """
    num_samples_B = num_samples_B.to(pcm_BS.device)
    with torch.autocast(pcm_BS.device.type, enabled=False):
        wave_BS = silenced_wave(pcm_BS, num_samples_B, int(num_samples_B.max()))
        emphasised_BS = torch.cat([wave_BS[:, :1], wave_BS[:, 1:] - _PREEMPHASIS * wave_BS[:, :-1]], dim=1)
        emphasised_BS = silenced_wave(emphasised_BS, num_samples_B, emphasised_BS.shape[1])
        filters_MF = slaney_filters(num_mel_bins, _FFT_SAMPLES, pcm_BS.device)
        spectrum_BFT = torch.stft(
            emphasised_BS,
            _FFT_SAMPLES,
            HOP_SAMPLES,
            win_length=_FRAME_SAMPLES,
            window=torch.hann_window(_FRAME_SAMPLES, periodic=False, device=pcm_BS.device),
            pad_mode="constant",
            return_complex=True,
        )
        mel_BMT = (filters_MF @ (spectrum_BFT.abs() ** 2).contiguous() + _PARAKEET_FLOOR).log()
        num_frames_B = num_samples_B // HOP_SAMPLES
        mean_B1M, std_B1M = _statistics(mel_BMT.transpose(1, 2), num_frames_B)
        normal_BTM = (mel_BMT.transpose(1, 2) - mean_B1M) / (std_B1M + 1e-5)
        return _own_frames(normal_BTM, num_frames_B), num_frames_B


def num_kaldi_frames(num_samples_B: torch.Tensor) -> torch.Tensor:
    """Frames of 25 ms that lie within the clip, every 10 ms."""
    return ((num_samples_B - _FRAME_SAMPLES) // HOP_SAMPLES + 1).clamp(min=0)


def kaldi_fbank(
    pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, *, num_mel_bins: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kaldi's log-mel filterbank: every frame freed of its mean and pre-emphasised by itself.

    Args:
        pcm_BS: int16, or floats in [-1, 1); 16 kHz. What lies behind a clip's end is ignored.
        num_samples_B: samples of each clip, at least 560: one frame has no spread.
        num_mel_bins: 80, as the tower wants.

    Returns:
        float32 mel_BTM, zero behind a clip's last frame, and the number of frames of each clip.
    """
    num_samples_B = num_samples_B.to(pcm_BS.device)
    with torch.autocast(pcm_BS.device.type, enabled=False):
        wave_BS = silenced_wave(pcm_BS, num_samples_B, int(num_samples_B.max())) * 32768
        # The stock extractor works in double precision, and quiet bins beside loud ones show it; Apple's GPU has none.
        wave_BS = wave_BS if wave_BS.device.type == "mps" else wave_BS.double()
        frames_BTX = wave_BS.unfold(1, _FRAME_SAMPLES, HOP_SAMPLES)
        frames_BTX = frames_BTX - frames_BTX.mean(-1, keepdim=True)
        before_BTX = torch.cat([frames_BTX[..., :1], frames_BTX[..., :-1]], dim=-1)
        window_X, filters_FM = _kaldi_filters(num_mel_bins, pcm_BS.device)
        spectrum_BTF = torch.fft.rfft((frames_BTX - _PREEMPHASIS * before_BTX) * window_X, _FFT_SAMPLES)
        mel_BTM = (spectrum_BTF.abs() ** 2 @ filters_FM.to(wave_BS.dtype)).clamp(min=_KALDI_FLOOR).log().float()
        num_frames_B = num_kaldi_frames(num_samples_B)
        mean_B1M, std_B1M = _statistics(mel_BTM, num_frames_B, floor=1e-7)
        return _own_frames((mel_BTM - mean_B1M) / std_B1M, num_frames_B), num_frames_B


def _statistics(
    mel_BTM: torch.Tensor, num_frames_B: torch.Tensor, floor: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each bin over the clip's own frames; `floor` is added to the variance."""
    num_B11 = num_frames_B[:, None, None].to(mel_BTM.dtype)
    mean_B1M = _own_frames(mel_BTM, num_frames_B).sum(1, keepdim=True) / num_B11
    squares_BTM = _own_frames((mel_BTM - mean_B1M) ** 2, num_frames_B)
    return mean_B1M, (squares_BTM.sum(1, keepdim=True) / (num_B11 - 1) + floor).sqrt()


def _own_frames(mel_BTM: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
    behind_BT = torch.arange(mel_BTM.shape[1], device=mel_BTM.device) >= num_frames_B[:, None]
    return mel_BTM.masked_fill(behind_BT[..., None], 0.0)
