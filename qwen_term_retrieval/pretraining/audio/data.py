"""Speech without labels on its way into a batch: clean clips, what is heard in their place, and what of it is hidden.

Of a visit everything random follows from its draw: speed, silence, noise, hidden blocks. Order: a clip that is too
short is repeated, or followed by silence, up to `min_seconds`; speed and silence come next and belong to the clean clip
too; everything else, noise first of all, is heard and not learned.

Shapes: B clips, S samples.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import xxhash

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.distortion import collate_distortions, distort
from qwen_term_retrieval.augmentation.planning import DistortionPlanner, dbfs
from qwen_term_retrieval.augmentation.visits import load_recordings
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.masking import BlockMask
from qwen_term_retrieval.pretraining.audio.model import MIN_SAMPLES, draw_mask
from qwen_term_retrieval.runs.checkpoints.resuming import rows_identity
from qwen_term_retrieval.runs.sampling import Visit

logger = logging.getLogger(__name__)

PADDINGS = ("repeat", "zero")
# As NEST's published settings have it: one other talker, or noise, over half of the clip; nothing else. The paper's
# several segments are `noise_segments: [1, 3]`.
NEST_AUGMENTATION: dict[str, Any] = {
    "noise_span": (0.5, 0.5), "speed_prob": 0.0, "silence_prob": 0.0, "reverb_prob": 0.0, "band_prob": 0.0,
    "telephone_prob": 0.0, "gain_prob": 0.0,
}  # fmt: skip
_LOOKED_AT = 100


@dataclass(frozen=True)
class ClipSettings:
    """What clips are made into before anything is heard in them.

    Attributes:
        min_seconds: clips are made as long as this, at least.
        padding: by being repeated ("repeat"), or by silence behind them ("zero").
        max_seconds: no clip is longer, nor slowed down beyond it.
        augmentation: settings of `AugmentationConfig` that differ from `NEST_AUGMENTATION`; None: clean speech alone.
    """

    min_seconds: float = 1.0
    padding: str = "repeat"
    max_seconds: float = 60.0
    augmentation: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {self.padding!r}")
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"min_seconds must lie between 0 and max_clip_seconds {self.max_seconds:g}, not {self.min_seconds}"
            )
        self.config()

    def config(self) -> AugmentationConfig | None:
        """The augmentation that the settings come to."""
        if self.augmentation is None:
            return None
        return AugmentationConfig.from_dict({**NEST_AUGMENTATION, **self.augmentation})

    def fastest(self) -> float:
        """How many times faster than it was recorded a clip may be played."""
        config = self.config()
        return max(1.0, config.speed[1]) if config is not None and config.speed_prob else 1.0


class NestClips(torch.utils.data.Dataset):
    """Clips for a DataLoader: takes batches of visits, gives what `NestForPreTraining.forward` reads.

    Args:
        rows: with a column `audio`; of others `key` and `speaker` are used, where they are there.
        config: of the model.
        settings: see `ClipSettings`.
        name: what messages call the rows.
        on_device: leave noise to `distort_batch`, when the batch has come to the device.

    Raises:
        ValueError: no clip is longer than a block; a clip is too short or too long; noise of silence alone.
        FileNotFoundError: there is no such noise.

    Example:
        >>> clips = NestClips(rows, NestConfig(), ClipSettings())                              # doctest: +SKIP
        >>> clips.batch([Visit(clip=3, draw=12345)]).keys()                                    # doctest: +SKIP
        dict_keys(['pcm_BS', 'num_samples_B', 'noisy_pcm_BS', 'mask'])
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        config: NestConfig,
        settings: ClipSettings,
        name: str = "the rows",
        *,
        on_device: bool = False,
    ):
        self.rows = rows
        self.config = config
        self.settings = settings
        self.on_device = on_device
        self.reader = ClipReader(rows)
        self.block_mask = BlockMask.of(config)
        self._min_samples = round(settings.min_seconds * SAMPLING_RATE)
        self.durations = np.maximum(self.reader.num_samples, self._min_samples) / SAMPLING_RATE
        self._check_lengths(name)
        self.noise: ClipReader | None = None
        self.planner = self._planner()

    def _check_lengths(self, name: str) -> None:
        num_samples_N = np.maximum(self.reader.num_samples, self._min_samples)
        shortest, longest = int(num_samples_N.argmin()), int(num_samples_N.argmax())
        if num_samples_N[shortest] < MIN_SAMPLES * self.settings.fastest():
            raise ValueError(
                f"{name}: {self._called(shortest)} has {self.reader.num_samples[shortest]} samples, and {MIN_SAMPLES} "
                "are two mel frames; set min_seconds, or leave out short clips with `rows.filter`"
            )
        if num_samples_N[longest] > self.settings.max_seconds * SAMPLING_RATE:
            raise ValueError(
                f"{name}: {self._called(longest)} lasts {num_samples_N[longest] / SAMPLING_RATE:.1f} s, and "
                f"max_clip_seconds is {self.settings.max_seconds:g}. Cut it before packing, drop it with "
                "`rows.filter`, or raise max_clip_seconds"
            )
        if num_samples_N[longest] / self.settings.fastest() // HOP_SAMPLES <= self.config.block_frames:
            raise ValueError(
                f"{name}: the longest clip, {self._called(longest)}, has {num_samples_N[longest] / SAMPLING_RATE:.2f} "
                f"s, and a hidden block has {self.config.block_frames / 100:g} s: there is nothing to learn from. Set "
                "min_seconds, or a smaller block_frames"
            )

    def _called(self, clip: int) -> str:
        return f"clip {self.rows[clip]['key']!r}" if "key" in self.rows.column_names else f"clip {clip}"

    def _planner(self) -> DistortionPlanner | None:
        config = self.settings.config()
        if config is None:
            return None
        rooms = _reader(config.impulse_responses, "impulse_responses")
        self.noise = _reader(config.noise, "noise")
        if self.noise is not None and config.noise_prob and config.speech_share < 1:
            check_sounds(self.noise, str(config.noise), config.silence_dbfs)
        return DistortionPlanner(
            config, self.reader, noise=self.noise, impulse_responses=rooms,
            max_samples=round(self.settings.max_seconds * SAMPLING_RATE), speakers=speaker_numbers(self.rows),
        )  # fmt: skip

    def identity(self) -> dict[str, str]:
        """What tells this training data from other data, for checkpoints."""
        own = {"clips": rows_identity(self.rows, ("key", "speaker")), "lengths": _digest(self.reader)}
        settings = dataclasses.asdict(self.settings) | {"augmentation": None}
        config = self.settings.config()
        if config is not None:
            settings["augmentation"] = dataclasses.asdict(config)
            own["noise"] = "none" if self.noise is None else _digest(self.noise)
        masking = {
            name: getattr(self.config, name)
            for name in ("block_frames", "mask_probability", "min_blocks", "mask_position")
        }
        return own | {"settings of clips": json.dumps(settings), "masks": json.dumps(masking)}

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, visits: Sequence[Visit]) -> list[Visit]:
        return list(visits)

    def __getitem__(self, visit: Visit) -> Visit:
        return visit

    def batch(self, visits: Sequence[Visit]) -> dict[str, Any]:
        """Inputs of `forward`: `pcm_BS` int16, `num_samples_B`, `mask` and, unless it is to be made, `noisy_pcm_BS`."""
        batch: dict[str, Any] = {}
        if self.planner is None:
            pcm_BS, num_samples_B = self.clean([visit.clip for visit in visits])
        else:
            clips = self._views([visit.clip for visit in visits])
            plans = [
                self.planner.draw(visit.draw, visit.clip, len(pcm)) for visit, pcm in zip(visits, clips, strict=True)
            ]
            ingredients = [self.planner.render(pcm, plan) for pcm, plan in zip(clips, plans, strict=True)]
            pcm_BS, num_samples_B = pad_pcm([clip.pcm for clip in ingredients])
            if any(clip.is_changed for clip in ingredients):
                batch["distortions"] = collate_distortions(ingredients)
        draws = [visit.draw for visit in visits]
        batch |= {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B}
        batch["mask"] = draw_mask(self.block_mask, self.config, num_samples_B, draws)
        return batch if self.on_device else distort_batch(batch)

    def clean(self, clips: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """pcm_BS, int16, and num_samples_B of clips as they were recorded, made long enough."""
        return pad_pcm(self._views(clips))

    def _views(self, clips: Sequence[int]) -> list[np.ndarray]:
        return [self._long_enough(pcm) for pcm in self.reader.views(clips)]

    def _long_enough(self, pcm: np.ndarray) -> np.ndarray:
        if len(pcm) >= self._min_samples:
            return pcm
        if self.settings.padding == "repeat" and len(pcm):
            return np.resize(pcm, self._min_samples)
        return np.pad(pcm, (0, self._min_samples - len(pcm)))

    def num_masked(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Hidden tokens of a batch, on the device where its mask lies."""
        return self.block_mask.tokens(batch["mask"]).sum()


def distort_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with `noisy_pcm_BS`, made where its samples lie, if it is still to be made."""
    inputs = dict(batch)
    if "distortions" in inputs:
        inputs["noisy_pcm_BS"], _ = distort(inputs["pcm_BS"], inputs["num_samples_B"], inputs.pop("distortions"))
    return inputs


def fixed_visits(count: int, seed: int) -> list[Visit]:
    """One visit of each clip, the same each time: what an evaluation hears and hides."""
    draws = np.random.default_rng((seed, count)).integers(1 << 62, size=count)
    return [Visit(clip, draw) for clip, draw in enumerate(draws.tolist())]


def speaker_numbers(rows: datasets.Dataset) -> np.ndarray | None:
    """A number for each speaker, one of its own for each clip whose speaker is unknown; None without a column."""
    if "speaker" not in rows.column_names:
        return None
    names = rows.with_format("arrow")["speaker"].to_pylist()
    numbers: dict[Any, int] = {}
    return np.array(
        [numbers.setdefault((row,) if name is None else name, len(numbers)) for row, name in enumerate(names)]
    )


def check_sounds(recordings: ClipReader, name: str, silence_dbfs: float) -> None:
    """Refuse noise in which nothing is heard.

    Raises:
        ValueError: every recording that was looked at is silent.
    """
    looked_at = np.unique(np.linspace(0, len(recordings) - 1, min(_LOOKED_AT, len(recordings))).astype(int))
    views = recordings.views(looked_at) if len(recordings) else []
    if not any(len(pcm) and dbfs(pcm) > silence_dbfs for pcm in views):
        raise ValueError(
            f"augmentation: noise: {name!r} is silent: of {len(looked_at)} recordings none is above {silence_dbfs:g} "
            "dBFS. Give other noise, lower silence_dbfs, or leave `noise` out for other voices in its place"
        )


def _reader(source: str | None, setting: str) -> ClipReader | None:
    return None if source is None else ClipReader(load_recordings(source, setting))


def _digest(reader: ClipReader) -> str:
    return f"{len(reader)} with digest {xxhash.xxh3_64_hexdigest(reader.num_samples.tobytes())}"
