"""Log-mel spectrogram on the device, from int16 samples, for clips of mixed length.

Equals `transformers.WhisperFeatureExtractor` on a 30 s pad, frame by frame, without computing the 30 s: a clip is
followed by a few frames of silence (guard frames) and no more. The log maximum that Whisper clamps by is taken
clip by clip, so a clip's frames do not depend on its batch mates. `reflected_log_mel` is the same extractor run on a
clip without a pad, as the processors of Qwen3 run it: the last frames hear the clip's end reflected, not silence.

Shapes: B clips, S samples, M mel bins, T mel frames (10 ms), F frequencies.
"""

from __future__ import annotations

import functools

import torch
from transformers.audio_utils import mel_filter_bank

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE

HOP_SAMPLES = 160
_FFT_SAMPLES = 400
# The two convolutions of the towers look two frames to the right, and the frame before the silence needs the
# silence: with four, outputs on valid frames equal those on a 30 s pad.
GUARD_FRAMES = 4


@functools.lru_cache(maxsize=16)
def slaney_filters(num_mel_bins: int, fft_samples: int, device: torch.device) -> torch.Tensor:
    """Mel filters_MF from 0 to 8 kHz, float32.

    Kept outside the modules: a non-persistent buffer is left empty by `from_pretrained` (transformers 5).
    """
    filters = mel_filter_bank(
        num_frequency_bins=fft_samples // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T.copy()).to(device, torch.float32)


def num_mel_frames(num_samples_B: torch.Tensor) -> torch.Tensor:
    """Frames that begin within the clip: one per started 10 ms."""
    return (num_samples_B + HOP_SAMPLES - 1) // HOP_SAMPLES


def log_mel(
    pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, *, num_mel_bins: int, max_frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel frames of a padded batch.

    Args:
        pcm_BS: int16, or floats in [-1, 1); 16 kHz. What lies behind a clip's end is ignored.
        num_samples_B: samples of each clip.
        num_mel_bins: 80 or 128, as the tower wants.
        max_frames: frames that the tower takes at most; the guard frames stop there too.

    Returns:
        float32 mel_BMT, T a multiple of four (or `max_frames`), and the number of valid frames of each clip.
    """
    num_frames_B = num_mel_frames(num_samples_B)
    num_frames = min(-(-(int(num_frames_B.max()) + GUARD_FRAMES) // 4) * 4, max_frames)
    with torch.autocast(pcm_BS.device.type, enabled=False):
        wave_BS = silenced_wave(pcm_BS, num_samples_B, num_frames * HOP_SAMPLES)
        mel_BMT = _log_power(wave_BS, num_mel_bins)
        return _compressed(mel_BMT, mel_BMT.amax(dim=(1, 2), keepdim=True)), num_frames_B


def reflected_log_mel(
    pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, *, num_mel_bins: int, min_samples: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel frames of each clip alone: one per whole 10 ms, its ends reflected, zero behind its last.

    Args:
        pcm_BS, num_samples_B, num_mel_bins: as `log_mel` takes them.
        min_samples: shorter clips are followed by silence up to this length, and framed with it.

    Returns:
        float32 mel_BMT, and the number of frames of each clip.
    """
    padded_B = num_samples_B.to(pcm_BS.device).clamp(min=min_samples)
    num_frames_B = padded_B // HOP_SAMPLES
    with torch.autocast(pcm_BS.device.type, enabled=False):
        wave_BS = silenced_wave(pcm_BS, num_samples_B, int(padded_B.max()) + _FFT_SAMPLES // 2)
        position_S = torch.arange(wave_BS.shape[1], device=wave_BS.device)
        last_B1 = padded_B[:, None] - 1
        reflected_BS = torch.where(position_S > last_B1, 2 * last_B1 - position_S, position_S).clamp(min=0)
        mel_BMT = _log_power(wave_BS.gather(1, reflected_BS), num_mel_bins)[..., : int(num_frames_B.max())]
        behind_B1T = torch.arange(mel_BMT.shape[-1], device=mel_BMT.device) >= num_frames_B[:, None, None]
        loudest_B11 = mel_BMT.masked_fill(behind_B1T, -torch.inf).amax(dim=(1, 2), keepdim=True)
        return _compressed(mel_BMT, loudest_B11).masked_fill(behind_B1T, 0.0), num_frames_B


def silenced_wave(pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, num_samples: int) -> torch.Tensor:
    """float32 in [-1, 1), cut or filled up to `num_samples`, with silence behind each clip's end."""
    wave_BS = pcm_BS.new_zeros((len(pcm_BS), num_samples), dtype=torch.float32)
    wave_BS[:, : pcm_BS.shape[1]] = pcm_BS[:, :num_samples]
    if pcm_BS.dtype == torch.int16:
        wave_BS /= 32768
    position_S = torch.arange(num_samples, device=wave_BS.device)
    return wave_BS.masked_fill_(position_S >= num_samples_B.to(wave_BS.device)[:, None], 0.0)


def _log_power(wave_BS: torch.Tensor, num_mel_bins: int) -> torch.Tensor:
    window = torch.hann_window(_FFT_SAMPLES, device=wave_BS.device)
    spectrum_BFT = torch.stft(wave_BS, _FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)[..., :-1]
    # In place where it can be: on a CPU, fresh memory costs more than the arithmetic. The modulus would take a root.
    power_BFT = spectrum_BFT.real.square().addcmul_(spectrum_BFT.imag, spectrum_BFT.imag)
    return (slaney_filters(num_mel_bins, _FFT_SAMPLES, wave_BS.device) @ power_BFT).clamp_(min=1e-10).log10_()


def _compressed(mel_BMT: torch.Tensor, loudest_B11: torch.Tensor) -> torch.Tensor:
    """Eight decades below the loudest bin, moved to about [-1, 1]; in place."""
    return mel_BMT.clamp_(min=loudest_B11 - 8.0).add_(4.0).div_(4.0)
