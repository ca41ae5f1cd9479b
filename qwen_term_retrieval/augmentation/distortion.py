"""Distortions applied to a padded batch: reverberation, noise, channel and gain; the same code on CPU and device.

Every step is one operation over the rows of the batch that have it; a row that has none comes back bit for bit.
Computed in float64 and rounded to int16: a Fourier transform differs in its last bits with the batch, the number of
threads and the device, and after rounding it does not, so a visit sounds the same wherever it is computed.

Shapes: B clips, S samples, R rows with one effect, L taps of a filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from qwen_term_retrieval.augmentation.impulse_responses import FILTER_TAPS, band_filter
from qwen_term_retrieval.augmentation.planning import Ingredients

_FULL_SCALE = 32768.0
_LOUDEST = 32767.0
_MU = 255.0
_TELEPHONE_RATE_HZ = 8000.0
_TINY = torch.finfo(torch.float64).tiny
# Where a clip is silent, a ratio to it would leave nothing of what is added there: its power counts as this share, at
# least, of its mean.
_QUIETEST = 1e-3
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
        "parts_RG2": _parts([clip for clip in clips if clip.added is not None]),
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

    A second of speech under another voice, 5 dB softer, through a telephone's band:

    >>> from qwen_term_retrieval.audio.collate import pad_pcm
    >>> speech, voice = np.random.default_rng(0).integers(-3000, 3000, (2, 16_000), dtype=np.int16)
    >>> clip = Ingredients(speech, added=voice, snr_db=5.0, band_filter=band_filter(300.0, 3400.0))
    >>> heard_BS, _ = distort(*pad_pcm([clip.pcm]), collate_distortions([clip]))
    >>> soundfile.write("heard.wav", heard_BS[0].numpy(), 16_000)                        # doctest: +SKIP
    """
    effects_B = torch.stack([distortions[name] >= 0 for name in ("room_B", "noise_B", "band_B")]).any(dim=0)
    changed = torch.nonzero(effects_B | (distortions["gain_db_B"] != 0))[:, 0]
    distorted_BS = pcm_BS.clone()
    scale_B = torch.ones(len(pcm_BS), dtype=torch.float64, device=pcm_BS.device)
    num_samples_B = num_samples_B.to(pcm_BS.device)
    if pcm_BS.device.type == "cpu":
        changed = _mix_alone(changed, distorted_BS, scale_B, num_samples_B, distortions)
    # Clips of like length together: what is computed on padding is lost.
    changed = changed[num_samples_B[changed].argsort()]
    rows_at_once = _CPU_ROWS if pcm_BS.device.type == "cpu" else _DEVICE_ROWS
    for rows in changed.split(rows_at_once) if len(changed) else ():
        longest = int(num_samples_B[rows].max())
        block = {name: values[rows] if name.endswith("_B") else values for name, values in distortions.items()}
        wave_BS = _before_gain(pcm_BS[rows, :longest].double(), num_samples_B[rows], block)
        gain_B = 10 ** (block["gain_db_B"] / 20)
        scale_B[rows] = (_LOUDEST / (_peak(wave_BS) * gain_B)).clamp(max=1.0)
        wave_BS *= (gain_B * scale_B[rows])[:, None]
        distorted_BS[rows, :longest] = wave_BS.round_().to(torch.int16)
    return distorted_BS, scale_B


def _mix_alone(
    changed: torch.Tensor,
    distorted_BS: torch.Tensor,
    scale_B: torch.Tensor,
    num_samples_B: torch.Tensor,
    distortions: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Add noise, in place, to the rows that have nothing else, and give those that are left.

    The numbers are those of a batch; a row at a time, and of it the parts alone in which something sounds, they stay in
    the caches of a CPU.
    """
    mixed_B = (distortions["noise_B"] >= 0) & (distortions["gain_db_B"] == 0) & ~distortions["telephone_B"]
    mixed_B &= (distortions["room_B"] < 0) & (distortions["band_B"] < 0)
    for row in torch.nonzero(mixed_B)[:, 0].tolist():
        number = int(distortions["noise_B"][row])
        pcm_S = distorted_BS[row, : int(num_samples_B[row])].numpy()
        noise_S = distortions["noise_RS"][number].numpy()
        parts = distortions["parts_RG2"][number].tolist() or [(0, len(pcm_S))]
        spans = [slice(first, min(first + length, len(noise_S))) for first, length in parts if length]
        clips, noises = ([values_S[span].astype(np.float64) for span in spans] for values_S in (pcm_S, noise_S))
        snr_db = float(distortions["snr_db_R"][number])
        loudest = max(-float(pcm_S.min()), float(pcm_S.max()))
        if not np.isnan(snr_db):
            energy, noise = (sum(float(part @ part) for part in parts) for parts in (clips, noises))
            share = sum(length for _, length in parts) / len(pcm_S)
            if share < 1 and energy < _QUIETEST * share * len(pcm_S) * loudest**2:  # else its mean is not so much
                whole_S = pcm_S.astype(np.float64)
                energy = max(energy, _QUIETEST * share * float(whole_S @ whole_S))
            gain = np.sqrt(energy) / max(np.sqrt(noise), _TINY) * 10 ** (-snr_db / 20)
            noises = [part * gain for part in noises]
        for clip, part in zip(clips, noises, strict=True):
            clip += part
        peak = max((max(-clip.min(), clip.max()) for clip in clips), default=0.0)
        if loudest > _LOUDEST:  # a sample of -32768, which may lie where nothing is added
            noisy_S = np.zeros(len(pcm_S), bool)
            for span in spans:
                noisy_S[span] = True
            peak = max(peak, -float(pcm_S[~noisy_S].min(initial=0)))
        scale = min(1.0, _LOUDEST / peak) if peak else 1.0
        if scale < 1:
            wave_S = pcm_S.astype(np.float64)
            for clip, span in zip(clips, spans, strict=True):
                wave_S[span] = clip
            clips, spans = [wave_S * scale], [slice(None)]
            scale_B[row] = scale
        for clip, span in zip(clips, spans, strict=True):
            np.rint(clip, out=clip)
            pcm_S[span] = clip
    return changed[~mixed_B[changed]]


def _before_gain(
    wave_BS: torch.Tensor, num_samples_B: torch.Tensor, distortions: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Room, noise and channel; samples in float64 on the scale of int16."""
    behind_BS = torch.arange(wave_BS.shape[1], device=wave_BS.device) >= num_samples_B[:, None]
    rows, response_RL = _rows_with(distortions, "room_B", "room_RL")
    if len(rows):
        dry_RS = wave_BS[rows]
        wet_RS = convolve(dry_RS, response_RL).masked_fill_(behind_BS[rows], 0)
        wave_BS[rows] = wet_RS.mul_((_loudness(dry_RS) / _loudness(wet_RS).clamp(min=_TINY))[:, None])
    rows, noise_RS = _rows_with(distortions, "noise_B", "noise_RS")
    if len(rows):
        noise_RS = noise_RS[:, : wave_BS.shape[1]]
        clip_RS = wave_BS[rows]
        snr_db_R = distortions["snr_db_R"][distortions["noise_B"][rows]]
        loudness_R = _loudness(clip_RS)
        if distortions["parts_RG2"].shape[1]:
            parts_RG2 = distortions["parts_RG2"][distortions["noise_B"][rows]]
            loudness_R = _loudness_in(clip_RS, loudness_R, parts_RG2, num_samples_B[rows])
        gain_R = loudness_R / _loudness(noise_RS).clamp(min=_TINY) * 10 ** (-snr_db_R / 20)
        clip_RS[:, : noise_RS.shape[1]].addcmul_(noise_RS, torch.where(snr_db_R.isnan(), 1.0, gain_R)[:, None])
        wave_BS[rows] = clip_RS
    rows, response_RL = _rows_with(distortions, "band_B", "band_RL")
    if len(rows):
        wave_BS[rows] = convolve(wave_BS[rows], response_RL, FILTER_TAPS // 2).masked_fill_(behind_BS[rows], 0)
    rows = torch.nonzero(distortions["telephone_B"])[:, 0]
    if len(rows):
        wave_BS[rows] = telephone(wave_BS[rows]).masked_fill_(behind_BS[rows], 0)
    return wave_BS


def _rows_with(distortions: dict[str, torch.Tensor], places: str, values: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the batch that have an effect, and its numbers for each of them, float64."""
    places_B = distortions[places]
    rows = torch.nonzero(places_B >= 0)[:, 0]
    return rows, distortions[values][places_B[rows]].double()


def convolve(wave_RS: torch.Tensor, response_RL: torch.Tensor, delay: int = 0) -> torch.Tensor:
    """Convolve each row with its own response, or all with one; samples `delay` to `delay + S` of the result.

    A response that is short beside the clips is applied to blocks of them (overlap-save): small transforms are quicker.
    """
    num_samples, num_taps = wave_RS.shape[1], response_RL.shape[1]
    size = _fast_size(min(num_samples + delay + num_taps - 1, 8 * num_taps))
    step = size - num_taps + 1
    num_blocks = -(-(num_samples + delay) // step)
    padded = F.pad(wave_RS, (num_taps - 1, num_blocks * step - num_samples))
    spectrum = torch.fft.rfft(padded.unfold(1, size, step)) * torch.fft.rfft(response_RL, size)[:, None]
    blocks = torch.fft.irfft(spectrum, size)[:, :, num_taps - 1 :]
    return blocks.flatten(1)[:, delay : delay + num_samples]


def telephone(wave_RS: torch.Tensor) -> torch.Tensor:
    """Every second sample in 8 bits of mu-law, and back to 16 kHz; the band must be cut before.

    Args:
        wave_RS: 16 kHz, on the scale of int16. What is louder than that is sent softer, and amplified again.
    """
    loud_R1 = (_peak(wave_RS) / _LOUDEST).clamp(min=1.0)[:, None]
    coded_RS = torch.zeros_like(wave_RS)
    coded_RS[:, ::2] = 2 * loud_R1 * mu_law(wave_RS[:, ::2] / loud_R1)
    low_pass_1L = torch.from_numpy(band_filter(0.0, _TELEPHONE_RATE_HZ / 2 - 200.0)).to(wave_RS)[None]
    return convolve(coded_RS, low_pass_1L, delay=FILTER_TAPS // 2)


def mu_law(wave: torch.Tensor) -> torch.Tensor:
    """Samples on the scale of int16 as they come out of 8 bits: the curve of G.711, in 255 steps of which one is 0."""
    scale = np.log1p(_MU)
    compressed = torch.log1p(wave.abs() * (_MU / _FULL_SCALE)).clamp(max=scale) / scale
    heard = torch.expm1((compressed * 127).round() * (scale / 127)) * (_FULL_SCALE / _MU)
    return heard.copysign(wave)


def _loudness(wave_RS: torch.Tensor) -> torch.Tensor:
    """Root of the energy: of each row (R,)."""
    return torch.linalg.vector_norm(wave_RS, dim=1)


def _loudness_in(
    wave_RS: torch.Tensor, loudness_R: torch.Tensor, parts_RG2: torch.Tensor, num_samples_R: torch.Tensor
) -> torch.Tensor:
    """Root of the energy of each row in its parts, as (first sample, samples); that of the whole row is known."""
    energy_RS = F.pad(wave_RS.square().cumsum(1), (1, 0))
    edges_RG2 = parts_RG2.cumsum(-1)
    energy_R = energy_RS.gather(1, edges_RG2.flatten(1)).unflatten(1, (-1, 2)).diff(dim=-1).sum((1, 2))
    share_R = parts_RG2[..., 1].sum(1) / num_samples_R
    return torch.maximum(energy_R, _QUIETEST * share_R * loudness_R.square()).sqrt()


def _peak(wave_RS: torch.Tensor) -> torch.Tensor:
    lowest_R, highest_R = wave_RS.aminmax(dim=1)
    return torch.maximum(-lowest_R, highest_R)


def _fast_size(at_least: int) -> int:
    """The next size of the form 2^n, 3 · 2^n or 5 · 2^n, which Fourier transforms are quick at."""
    power = 1 << max(3, (at_least - 1).bit_length())
    return min(size for size in (power * 5 // 8, power * 3 // 4, power) if size >= at_least)


def _places(arrays: Sequence[np.ndarray | None]) -> torch.Tensor:
    """Numbers those that are there; -1 for the others."""
    there = torch.tensor([array is not None for array in arrays])
    return torch.where(there, there.cumsum(0) - 1, -1)


def _parts(clips: Sequence[Ingredients]) -> torch.Tensor:
    """(first sample, samples) of the parts in which each added sound sounds; no column where all sound all over."""
    most = max((len(clip.parts) for clip in clips), default=0)
    parts_RG2 = torch.zeros(len(clips), most, 2, dtype=torch.long)
    for row_G2, clip in zip(parts_RG2 if most else (), clips, strict=False):
        parts = clip.parts or ((0, len(clip.pcm)),)
        row_G2[: len(parts)] = torch.tensor(parts)
    return parts_RG2


def _padded(arrays: Sequence[np.ndarray | None], dtype: type) -> torch.Tensor:
    rows = [array for array in arrays if array is not None]
    padded: np.ndarray = np.zeros((len(rows), max(map(len, rows), default=0)), dtype)
    for row, array in zip(padded, rows, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)
