"""Distortions applied to a padded batch: reverberation, noise, channel and gain; the same code on CPU and device.

Every step is one operation over the rows of the batch that it concerns; a row that none concerns comes back bit for
bit. Computed in float64 and rounded to int16: a Fourier transform differs in its last bits with the batch, the number
of threads and the device, and after rounding it does not, so a visit sounds the same wherever it is computed.

Shapes: B clips, S samples, R rows with one effect, L taps of a filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qwen_term_retrieval.audio.impulse_responses import FILTER_TAPS, band_filter
from qwen_term_retrieval.audio.noise import Ingredients

_FULL_SCALE = 32768.0
_LOUDEST = 32767.0 / 32768.0
_MU = 255.0
_TELEPHONE_RATE_HZ = 8000.0
_TINY = torch.finfo(torch.float64).tiny
# Rows computed at a time: a CPU keeps so many in its caches; a device is kept busy by so many, and its memory bounded.
_CPU_ROWS = 16
_DEVICE_ROWS = 256


def collate_distortions(clips: Sequence[Ingredients]) -> dict[str, torch.Tensor]:
    """What `distort` needs besides the padded clips: the numbers of each effect, and whose they are.

    `room_B`, `noise_B` and `band_B` say which row of the effect's tensor is a clip's, -1 for none. Noise stays int16,
    and nothing is padded that no clip needs: that is all that goes to the device.
    """
    snr_db = [np.nan if clip.snr_db is None else clip.snr_db for clip in clips if clip.added is not None]
    return {
        "room_B": _places([clip.impulse_response for clip in clips]),
        "room_RL": _padded([clip.impulse_response for clip in clips], np.float32),
        "noise_B": _places([clip.added for clip in clips]),
        "noise_RS": _padded([clip.added for clip in clips], np.int16),
        "snr_db_R": torch.tensor(snr_db, dtype=torch.float64),
        "band_B": _places([clip.band_filter for clip in clips]),
        "band_RL": _padded([clip.band_filter for clip in clips], np.float32),
        "telephone_B": torch.tensor([clip.telephone for clip in clips]),
        "gain_db_B": torch.tensor([clip.gain_db for clip in clips], dtype=torch.float64),
    }


def distort(
    pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, distortions: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the distortions of a batch.

    Args:
        pcm_BS: int16, zero behind each clip's end.
        num_samples_B: samples of each clip.
        distortions: of `collate_distortions`, on the device of `pcm_BS`.

    Returns:
        pcm_BS int16, a new tensor; scale_B float64: by how much each clip was scaled down not to clip, 1 for most.
    """
    effects_B = torch.stack([distortions[name] >= 0 for name in ("room_B", "noise_B", "band_B")]).any(dim=0)
    changed = torch.nonzero(effects_B | (distortions["gain_db_B"] != 0))[:, 0]
    distorted_BS = pcm_BS.clone()
    scale_B = torch.ones(len(pcm_BS), dtype=torch.float64, device=pcm_BS.device)
    num_samples_B = num_samples_B.to(pcm_BS.device)
    # Clips of like length together: what is computed on padding is lost.
    changed = changed[num_samples_B[changed].argsort()]
    rows_at_once = _CPU_ROWS if pcm_BS.device.type == "cpu" else _DEVICE_ROWS
    for rows in changed.split(rows_at_once) if len(changed) else ():
        longest = int(num_samples_B[rows].max())
        block = {name: values[rows] if name.endswith("_B") else values for name, values in distortions.items()}
        wave_BS = _distorted_wave(pcm_BS[rows, :longest].double() / _FULL_SCALE, num_samples_B[rows], block)
        scale_B[rows] = (_LOUDEST / wave_BS.abs().amax(dim=1)).clamp(max=1.0)
        distorted_BS[rows, :longest] = (wave_BS * (_FULL_SCALE * scale_B[rows, None])).round().to(torch.int16)
    return distorted_BS, scale_B


def _distorted_wave(
    wave_BS: torch.Tensor, num_samples_B: torch.Tensor, distortions: dict[str, torch.Tensor]
) -> torch.Tensor:
    valid_BS = torch.arange(wave_BS.shape[1], device=wave_BS.device) < num_samples_B[:, None]
    rows, response_RL = _concerned(distortions, "room_B", "room_RL")
    if len(rows):
        dry_RS = wave_BS[rows]
        wet_RS = convolve(dry_RS, response_RL) * valid_BS[rows]
        wave_BS[rows] = wet_RS * (_energy(dry_RS) / _energy(wet_RS).clamp(min=_TINY)).sqrt()[:, None]
    rows, noise_RS = _concerned(distortions, "noise_B", "noise_RS")
    if len(rows):
        noise_RS = noise_RS[:, : wave_BS.shape[1]] / _FULL_SCALE
        snr_db_R = distortions["snr_db_R"][distortions["noise_B"][rows]]
        gain_R = _noise_gain(wave_BS[rows, : noise_RS.shape[1]], noise_RS, snr_db_R)
        wave_BS[rows, : noise_RS.shape[1]] += noise_RS * gain_R[:, None]
    rows, response_RL = _concerned(distortions, "band_B", "band_RL")
    if len(rows):
        wave_BS[rows] = convolve(wave_BS[rows], response_RL, delay=FILTER_TAPS // 2) * valid_BS[rows]
    rows = torch.nonzero(distortions["telephone_B"])[:, 0]
    if len(rows):
        wave_BS[rows] = telephone(wave_BS[rows]) * valid_BS[rows]
    return wave_BS * (10 ** (distortions["gain_db_B"] / 20))[:, None]


def _concerned(distortions: dict[str, torch.Tensor], places: str, values: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the batch that an effect concerns, and its numbers for each of them, float64."""
    places_B = distortions[places]
    rows = torch.nonzero(places_B >= 0)[:, 0]
    return rows, distortions[values][places_B[rows]].double()


def convolve(wave_RS: torch.Tensor, response_RL: torch.Tensor, delay: int = 0) -> torch.Tensor:
    """Convolve each row with its own response; samples `delay` to `delay + S` of the result."""
    num_samples = wave_RS.shape[1]
    size = _fast_size(num_samples + response_RL.shape[1] - 1)
    spectrum = torch.fft.rfft(wave_RS, size) * torch.fft.rfft(response_RL, size)
    return torch.fft.irfft(spectrum, size)[:, delay : delay + num_samples]


def telephone(wave_RS: torch.Tensor) -> torch.Tensor:
    """Every second sample in 8 bits of mu-law (G.711's curve), and back to 16 kHz; the band must be cut before."""
    coded_RS = torch.zeros_like(wave_RS)
    coded_RS[:, ::2] = 2 * mu_law(wave_RS[:, ::2])
    low_pass_1L = torch.from_numpy(band_filter(0.0, _TELEPHONE_RATE_HZ / 2 - 200.0)).to(wave_RS)[None]
    return convolve(coded_RS, low_pass_1L, delay=FILTER_TAPS // 2)


def mu_law(wave: torch.Tensor) -> torch.Tensor:
    """Floats in [-1, 1] as they come out of 8 bits of mu-law."""
    wave = wave.clamp(-1.0, 1.0)
    compressed = wave.sign() * torch.log1p(_MU * wave.abs()) / np.log1p(_MU)
    # 255 levels, so that silence stays silence.
    compressed = (compressed * 127).round() / 127
    return compressed.sign() * torch.expm1(compressed.abs() * np.log1p(_MU)) / _MU


def _noise_gain(wave_RS: torch.Tensor, noise_RS: torch.Tensor, snr_db_R: torch.Tensor) -> torch.Tensor:
    """0 under a clip of digital silence, which no ratio can be measured by: it stays as it is."""
    gain_R = (_energy(wave_RS) / _energy(noise_RS).clamp(min=_TINY)).sqrt() * 10 ** (-snr_db_R / 20)
    return torch.where(snr_db_R.isnan(), torch.ones_like(gain_R), gain_R)


def _energy(wave_RS: torch.Tensor) -> torch.Tensor:
    return wave_RS.square().sum(dim=1)


def _fast_size(at_least: int) -> int:
    """The next size of the form 2^n, 3 · 2^n or 5 · 2^n, which Fourier transforms are quick at."""
    power = 1 << max(3, (at_least - 1).bit_length())
    return min(size for size in (power * 5 // 8, power * 3 // 4, power) if size >= at_least)


def _places(arrays: Sequence[np.ndarray | None]) -> torch.Tensor:
    """Numbers those that are there; -1 for the others."""
    there = torch.tensor([array is not None for array in arrays])
    return torch.where(there, there.cumsum(0) - 1, -1)


def _padded(arrays: Sequence[np.ndarray | None], dtype: type) -> torch.Tensor:
    rows = [array for array in arrays if array is not None]
    padded: np.ndarray = np.zeros((len(rows), max(map(len, rows), default=0)), dtype)
    for row, array in zip(padded, rows, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)
