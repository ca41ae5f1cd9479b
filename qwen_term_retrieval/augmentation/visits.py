"""Training clips as they are heard on one visit: which distortion, where its terms are then, and what else is said.

With a tower in training every visit is distorted anew, by the visit's own `draw`. Frames of a frozen tower are
computed once, so there each clip has a few distorted copies, and the visit's `draw` picks one of them, or the clip as
it was recorded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.distortion import collate_distortions, distort
from qwen_term_retrieval.augmentation.planning import Distortion, DistortionPlanner
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.registration import BUILDER_NAME

# Changes when the same settings give other sounds, so that no cache holds frames of the old ones.
_VERSION = 2


class Augmentation:
    """Distorts the visits of a training set.

    Args:
        config: what may happen.
        rows: the output of `annotate_terms`, packed.
        max_seconds: what the audio tower takes.
        num_copies: distorted copies of each clip that visits choose from; None: every visit is distorted anew.
        seed: of the copies.

    Raises:
        ValueError: a setting that cannot be.
        TypeError: the rows, the noise or the impulse responses are not packed audio.
        FileNotFoundError: there is no such noise.

    Example:
        >>> augmentation = Augmentation(AugmentationConfig(), rows, max_seconds=30.0)     # doctest: +SKIP
        >>> row = augmentation.visit({**rows[3], "clip": 3, "draw": 12345})               # doctest: +SKIP
        >>> row["distortion"], row["term_starts"]                                         # doctest: +SKIP
    """

    def __init__(
        self,
        config: AugmentationConfig,
        rows: datasets.Dataset,
        *,
        max_seconds: float,
        num_copies: int | None = None,
        seed: int = 0,
    ) -> None:
        if num_copies == 0:
            raise ValueError(
                "the audio tower is frozen, so the frames of a clip are computed once, and no visit can be augmented: "
                "set augmented_copies to 1 or more, or train the tower (lora_r)"
            )
        noise = _reader(config.noise, "noise")
        rooms = _reader(config.impulse_responses, "impulse_responses")
        self.clips = ClipReader(rows)
        self.planner = DistortionPlanner(
            config, self.clips, noise=noise, impulse_responses=rooms, max_samples=round(max_seconds * SAMPLING_RATE)
        )
        self.num_copies = num_copies
        self.seed = seed
        self._spoken = rows.select_columns(["term_ids", "spoken_ids"])
        sounds = [None if source is None else _fingerprint(source) for source in (noise, rooms)]
        self.settings = json.dumps([_VERSION, seed, dataclasses.asdict(config), sounds, self.planner.max_samples])

    def visit(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as it is heard, with its `copy` and `distortion`.

        Spans of terms move with the sound. The terms of somebody else talking join `spoken_ids`: they are
        said in the clip, so they are no negatives.

        Args:
            row: of the training set, with the visit's `clip` and `draw`.
        """
        copy = 0 if self.num_copies is None else row["draw"] % (self.num_copies + 1)
        distortion = self.distortion(row["clip"], row["draw"], copy)
        heard = {**row, "copy": copy, "distortion": distortion}
        for name in ("term_starts", "term_ends"):
            heard[name] = [None if second is None else distortion.moved(second) for second in row[name]]
        if distortion.added is not None and distortion.added.kind == "speech":
            beside = [self._spoken[clip] for clip, _ in distortion.added.crops]
            also = {identity for said in beside for identity in (*said["term_ids"], *said["spoken_ids"])}
            heard["spoken_ids"] = sorted({*row["spoken_ids"], *also})
        return heard

    def distortion(self, clip: int, draw: int, copy: int = 0) -> Distortion:
        """What is done to a visit, or to a numbered copy; copy 0 is the clip as it was recorded."""
        if self.num_copies is not None:
            if copy == 0:
                return Distortion()
            draw = int(np.random.SeedSequence((self.seed, clip, copy)).generate_state(1, np.uint64)[0])
        return self.planner.draw(draw, clip, int(self.clips.num_samples[clip]))

    def load(
        self, visits: Sequence[tuple[int, Distortion]]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """pcm_BS and num_samples_B of (clip, distortion), at their speed, and what `distort` is still to do to them."""
        views = self.clips.views([clip for clip, _ in visits])
        ingredients = [self.planner.render(pcm, distortion) for pcm, (_, distortion) in zip(views, visits, strict=True)]
        return *pad_pcm([clip.pcm for clip in ingredients]), collate_distortions(ingredients)


class DistortedCopies(Sequence[np.ndarray]):
    """Every clip of a training set and then, copy by copy, its distorted copies: int16 (num_samples,) each.

    Computed as they are asked for: for those whose frames no cache has yet.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.augmentation.clips) * (1 + (self.augmentation.num_copies or 0))

    def __getitem__(self, index: Any) -> Any:
        copy, clip = divmod(index, len(self.augmentation.clips))
        distortion = self.augmentation.distortion(clip, 0, copy)
        pcm_BS, num_samples_B, distortions = self.augmentation.load([(clip, distortion)])
        return distort(pcm_BS, num_samples_B, distortions)[0][0].numpy()

    def digests(self) -> list[tuple[bytes, int]]:
        """What tells each item from all others without computing it, and about how many samples it has.

        A clip itself is known by its samples, as in any cache of features; a copy by the settings and all the clips,
        since any of them may be what is heard beside it.
        """
        clips = self.augmentation.clips
        clean = [xxhash.xxh3_128_digest(clips.views([clip])[0].data) for clip in range(len(clips))]
        everything = xxhash.xxh3_128(self.augmentation.settings.encode())
        for digest in clean:
            everything.update(digest)
        prefix = everything.digest()
        copies = [xxhash.xxh3_128_digest(prefix + b"%d" % index) for index in range(len(clips), len(self))]
        lengths = clips.num_samples.tolist() * (len(self) // len(clips))
        return list(zip(clean + copies, lengths, strict=True))


def load_recordings(source: str, setting: str) -> datasets.Dataset:
    """All splits of a pack, a folder of audio (packed once, into the cache), a manifest or a dataset on the Hub.

    Raises:
        FileNotFoundError: there is none; the message names the setting.
    """
    path = Path(source).resolve()
    place = {"data_dir" if path.is_dir() else "data_files": str(path)}
    try:
        splits = datasets.load_dataset(BUILDER_NAME, **place) if path.exists() else datasets.load_dataset(source)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"augmentation: {setting}: no recordings {source!r}: no pack, no folder of audio, and the Hub did not give "
            f"it: {error}"
        ) from error
    return datasets.concatenate_datasets([rows.select_columns(["audio"]) for rows in splits.values()])


def _reader(source: str | None, setting: str) -> ClipReader | None:
    return None if source is None else ClipReader(load_recordings(source, setting))


def _fingerprint(recordings: ClipReader) -> str:
    """A digest of the length and the first second of each recording."""
    digest = xxhash.xxh3_128(recordings.num_samples.tobytes())
    for recording in range(len(recordings)):
        digest.update(recordings.views([recording])[0][:SAMPLING_RATE].data)
    return digest.hexdigest()
