"""A picture of an alignment: the spectrogram, what the head hears, and the sounds of a term in colours of their score.

The picture shows the term and a little around it. CTC says a sound in a frame or two: the bars under the term are those
frames, and its boxes reach to their neighbours, moved a little where they would be too narrow to read. A box is the
darker the worse its sound fits; what fits well enough has no number. A box with a + is heard and not in the term.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.evaluation.training_curves import BLUE, GREY
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES, log_mel
from qwen_term_retrieval.retrieval.explaining import AlignedSound, Alignment
from qwen_term_retrieval.storage.atomic import atomic_file

_AROUND_SECONDS = 0.5
_MEL_BINS = 80
# From here on a sound counts as not said at all: its frames are two hundred times likelier to be another.
_WORST_SCORE = -5.0
_WORTH_A_NUMBER = -0.5
_NARROWEST_BOX = 0.032  # of the picture
_GREYS = 24  # the file is then a sixth smaller
_COLOURS = ("#8C2D04", "#D55E00", "#F5B98A", "#F1EFEA", "#F7F6F2")


def stretch_shown(alignment: Alignment) -> tuple[float, float]:
    """The seconds of the recording that the picture of an alignment shows, where it is that long."""
    return max(0.0, alignment.start - _AROUND_SECONDS), alignment.end + _AROUND_SECONDS


def draw_alignment(alignment: Alignment, pcm: NDArray[np.int16], path: str | Path, *, begins: float = 0.0) -> None:
    """Draw an alignment as a PNG.

    Args:
        alignment: of `align_term`.
        pcm: the clip that it is of, or the stretch that is shown, int16 (num_samples,), 16 kHz.
        path: takes its name only when the picture is whole.
        begins: the second of the recording that `pcm` begins at.

    Raises:
        ImportError: matplotlib is missing (extra `report`).
    """
    from matplotlib.figure import Figure

    first, last = stretch_shown(alignment)
    last = min(begins + len(pcm) / SAMPLING_RATE, last)
    # A fixed layout, since fitting one takes longer than drawing.
    figure = Figure(figsize=(8, 3.6))
    figure.subplots_adjust(left=0.065, right=0.985, top=0.9, bottom=0.13, hspace=0.06)
    spectrogram, heard, said = figure.subplots(3, 1, sharex=True, height_ratios=(5, 1, 1.5))
    _draw_spectrogram(spectrogram, pcm, alignment, (first - begins, last - begins), begins)
    _draw_heard(heard, alignment, first, last)
    _draw_said(said, alignment, narrowest=_NARROWEST_BOX * (last - first))
    spectrogram.set_xlim(first, last)
    said.set_xlabel("seconds")
    figure.text(0.065, 0.935, f"“{alignment.term}”", fontsize=12, weight="bold")
    summary = f"fit {alignment.fit:.1f}, {alignment.fit_per_sound:.2f} a sound; worst: {alignment.worst}"
    figure.text(0.985, 0.935, summary, fontsize=9, color=GREY, ha="right")
    with atomic_file(Path(path), durable=False) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_spectrogram(
    axes: Any, pcm: NDArray[np.int16], alignment: Alignment, shown_of_pcm: tuple[float, float], begins: float
) -> None:
    from matplotlib import colormaps

    first, last = shown_of_pcm
    begin, end = int(first * SAMPLING_RATE) // HOP_SAMPLES * HOP_SAMPLES, round(last * SAMPLING_RATE)
    shown = torch.from_numpy(np.array(pcm[begin:end]))[None]
    max_frames = shown.shape[1] // HOP_SAMPLES + 8
    mel_BMT, num_frames_B = log_mel(
        shown, torch.tensor([shown.shape[1]]), num_mel_bins=_MEL_BINS, max_frames=max_frames
    )
    picture = mel_BMT[0, :, : int(num_frames_B)].numpy()
    left = begins + begin / SAMPLING_RATE
    edges = (left, left + picture.shape[1] * HOP_SAMPLES / SAMPLING_RATE, 0, _MEL_BINS)
    axes.imshow(picture, origin="lower", aspect="auto", cmap=colormaps["gray_r"].resampled(_GREYS), extent=edges)
    axes.axvspan(alignment.start, alignment.end, color=BLUE, alpha=0.12, linewidth=0)
    for edge, side in ((alignment.start, "right"), (alignment.end, "left")):
        axes.axvline(edge, color=BLUE, linewidth=1.2)
        axes.annotate(
            f"{edge:.2f} s", (edge, _MEL_BINS), (4 if side == "left" else -4, -4), textcoords="offset points",
            ha=side, va="top", fontsize=8, color=BLUE,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    _bare(axes, "mel")


def _draw_heard(axes: Any, alignment: Alignment, first: float, last: float) -> None:
    # Half of a symbol, which would else lie on the axis' name.
    edge = 0.012 * (last - first)
    for sound in alignment.heard:
        middle = (sound.start + sound.end) / 2
        if first + edge <= middle <= last - edge:
            inside = alignment.start <= middle <= alignment.end
            axes.text(
                middle, 0.5, sound.symbol, ha="center", va="center", fontsize=11, color="black" if inside else "#999999"
            )
    axes.set_ylim(0, 1)
    _bare(axes, "heard")


def _draw_said(axes: Any, alignment: Alignment, narrowest: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("fit", _COLOURS)
    for sound, (left, right) in zip(alignment.in_order, _boxes(alignment.in_order, narrowest), strict=True):
        badness = float(np.clip(sound.score / _WORST_SCORE, 0, 1))
        colour = colours(1 - badness)
        axes.axvspan(left, right, ymin=0.16, facecolor=colour, edgecolor="white", linewidth=1.5)
        ink = "white" if badness > 0.6 else "black"
        middle = (left + right) / 2
        axes.text(middle, 0.68, sound.symbol or "+", ha="center", va="center", fontsize=12, color=ink)
        if sound.score <= _WORTH_A_NUMBER:
            number = f"{sound.score:.1f}" if sound.score > -10 else f"{sound.score:.0f}"
            axes.text(middle, 0.32, number, ha="center", va="center", fontsize=7, color=ink)
        if sound.symbol:
            axes.hlines(0.06, sound.start, sound.end, color=BLUE, linewidth=2.5)
    axes.set_ylim(0, 1)
    _bare(axes, "term")


def _boxes(sounds: Sequence[AlignedSound], narrowest: float) -> list[tuple[float, float]]:
    """Each sound from the middle of the gap before it to the middle of the one after; wider boxes push the others."""
    inner = [(before.end + after.start) / 2 for before, after in itertools.pairwise(sounds)]
    edges = np.array([sounds[0].start, *inner, sounds[-1].end])
    widths = np.diff(edges).clip(min=narrowest)
    left = (edges[0] + edges[-1] - widths.sum()) / 2
    edges = left + np.concatenate([[0.0], widths.cumsum()])
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _bare(axes: Any, label: str) -> None:
    axes.set(yticks=[])
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    axes.tick_params(axis="x", labelsize=8, length=3 if label == "term" else 0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
