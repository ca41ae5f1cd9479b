"""Names to recordings: files, URLs, folders and patterns; channels and tracks; and which of them can be heard."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwen_term_retrieval.audio.sound_files import opened_recording
from qwen_term_retrieval.audio.sources import AUDIO_SUFFIXES, Recording, is_url
from qwen_term_retrieval.errors import BadAudioError

Channel = Literal["mix", "left", "right", "each"]
CHANNELS: tuple[str, ...] = ("mix", "left", "right", "each")
OnError = Literal["raise", "skip"]
_SIDES = {"left": 0, "right": 1}


@dataclass(frozen=True)
class Opened:
    """A recording whose header was read.

    name: as messages and answers have it. seconds: about how long it is; None where its header does not say.
    """

    recording: Recording
    name: str
    seconds: float | None

    @property
    def channel(self) -> str | None:
        """Which one is heard, left or right or by number from 0; None: all together."""
        number = self.recording.channel
        return None if number is None else dict(zip(_SIDES.values(), _SIDES, strict=True)).get(number, str(number))

    def __str__(self) -> str:
        return self.name if self.channel is None else f"{self.name}, {self.channel}"


@dataclass
class Skipped:
    """Recordings that could not be heard, and why; for `on_error="skip"`."""

    reasons: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.reasons)

    def take(self, error: BadAudioError, on_error: OnError) -> str:
        """Count what is skipped, and say so; raise what is not."""
        if on_error != "skip":
            raise error
        self.reasons.append(str(error))
        return f"skipped: {error}"


def find_recordings(names: Iterable[str | Path]) -> list[str]:
    """Files by name, in the order given: those of a folder and all below it, and those of a pattern, by name.

    Hidden files are only taken by their own names.

    Raises:
        FileNotFoundError: a folder without a recording, or a pattern that fits none.
    """
    found: list[str] = []
    for name in map(str, names):
        if is_url(name) or Path(name).is_file():
            found.append(name)
        elif Path(name).is_dir():
            inside = sorted(map(str, _files_below(name)))
            if not inside:
                raise FileNotFoundError(f"{name}: no recording in this folder, nor below it")
            found += inside
        elif glob.has_magic(name):
            fits = sorted(path for path in glob.glob(os.path.expanduser(name), recursive=True) if Path(path).is_file())  # noqa: PTH111
            if not fits:
                raise FileNotFoundError(f"{name}: no file has a name like this")
            found += fits
        else:
            found.append(name)  # opening it says what is wrong
    return list(dict.fromkeys(found))


def _files_below(folder: str) -> Iterable[Path]:
    for where, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(where, name)


def open_recordings(
    names: Sequence[str | Path],
    *,
    channel: Channel = "mix",
    track: int | None = None,
    on_error: OnError = "raise",
    skipped: Skipped | None = None,
) -> tuple[list[Opened], list[str]]:
    """Read the headers of recordings, before a model is loaded.

    Args:
        names: see `find_recordings`.
        channel: "mix" hears all channels together, "left" and "right" one, "each" every one as a recording of its own.
        track: of a container with several audio tracks, counted from 0; None: its default.
        on_error: "skip" leaves out what cannot be heard.
        skipped: counts it.

    Returns:
        The recordings, and a line for each that was skipped.

    Raises:
        BadAudioError: naming the file. ValueError: a channel that there is not.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, not {channel!r}")
    skipped = Skipped() if skipped is None else skipped
    opened: list[Opened] = []
    lines: list[str] = []
    for name in find_recordings(names):
        try:
            opened += _opened(name, channel, track)
        except BadAudioError as error:
            lines.append(skipped.take(BadAudioError(f"{name}: {error}"), on_error))
    return opened, lines


def _opened(name: str, channel: Channel, track: int | None) -> list[Opened]:
    with opened_recording(name, track) as file:
        frames = file.frames
        seconds = frames / file.samplerate if 0 < frames < 1 << 62 else None
        num_channels = file.channels
    chosen: list[int | None] = [None]
    if channel == "each" and num_channels > 1:
        chosen = [*range(num_channels)]
    elif channel in _SIDES and num_channels > 1:
        chosen = [_SIDES[channel]]
    elif channel == "right":
        raise BadAudioError("has one channel, so none on the right")
    return [Opened(Recording(name, number, track), name, seconds) for number in chosen]
