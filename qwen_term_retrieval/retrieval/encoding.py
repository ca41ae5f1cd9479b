"""Clips to the windows that a search scores.

`ClipEncoder` takes audio of any kind, cuts what is longer than `CHUNK_SECONDS` into overlapping chunks, encodes chunks
of like length together, and pools every window of the grid. Recordings are read as they are encoded: memory follows
the batch, not the recording.

Shapes: C chunks, W windows, P windows of all chunks, S samples, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import datasets
import numpy as np
import torch

from qwen_term_retrieval.audio.clip import AudioClip
from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_blocks, clip_pcm
from qwen_term_retrieval.audio.sources import Recording, name_of_audio
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.models.embeddings import AudioEmbeddings, Spans
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.spans.windows import window_grid
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.stream import Chunk, Chunker

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 8.0
MARGIN_SECONDS = 0.2
# For models trained on whole clips, which name no windows of their own: terms of one to four words last this long.
DEFAULT_WINDOW_SECONDS = (0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2)
DEFAULT_STRIDE_SECONDS = 0.1
# Nobody needs a bar for less.
_BAR_AFTER_SECONDS = 2.0
# 64 MB of samples.
_CHUNKS_AT_ONCE = 256

Windows = Literal["auto", "clip"] | Mapping[str, Any]


class ClipEncoder:
    """Audio to windows.

    Args:
        model: its towers encode.
        windows: the grid. "auto" takes the model's own or, where it has none, sizes from 0.3 to 3.2 s every 0.1 s and
            the whole of a short clip. "clip" takes each clip as one window: for clips that are a term and nothing
            else. Or `{"sizes": […], "stride": …}` in encoder frames.
    """

    def __init__(self, model: TermRetrievalModel, windows: Windows = "auto"):
        self.model = model
        self.samples_per_frame = round(SAMPLING_RATE / model.frame_rate)
        self.sizes, self.stride = _window_sizes(model, windows)

    @property
    def longest_seconds(self) -> float:
        """The longest window; 0 where a clip is one."""
        return 0.0 if self.sizes is None else max(self.sizes) / self.model.frame_rate

    @property
    def logit_scale(self) -> float:
        """What the model multiplies a cosine by."""
        return self.model.logit_scale.exp().item()

    def chunker(self, hop_seconds: float | None = None) -> Chunker:
        """Cuts a recording for this grid.

        Args:
            hop_seconds: between chunks; None: as searches do, chunks of `CHUNK_SECONDS`.

        Raises:
            ValueError: clips are heard as a whole.
        """
        if self.sizes is None or self.stride is None:
            raise ValueError('a recording cannot be taken as one window: windows="clip" is for clips')
        first_hop = None
        if hop_seconds is None:
            hop_seconds = max(1.0, CHUNK_SECONDS - self.longest_seconds - 2 * MARGIN_SECONDS)
            first_hop = round((CHUNK_SECONDS - MARGIN_SECONDS) * self.model.frame_rate)
        return Chunker(
            samples_per_frame=self.samples_per_frame,
            longest_window=max(self.sizes),
            stride=self.stride,
            hop=max(1, round(hop_seconds * self.model.frame_rate)),
            margin=max(1, round(MARGIN_SECONDS * self.model.frame_rate)),
            first_hop=first_hop,
        )

    @property
    def least_samples(self) -> int:
        """Of a clip in which something can be heard."""
        return 2 * self.samples_per_frame

    def cut(
        self, clips: Iterable[Any], sampling_rate: int | None = None, *, first: int = 0
    ) -> Iterator[tuple[int, Chunk]]:
        """(position of the clip, chunk) of all clips, read as they are asked for.

        Silent chunks are left out, silent clips counted in the log when all are read.

        Args:
            clips: see `clip_blocks`.
            sampling_rate: of arrays, in Hz.
            first: number of the first clip, for messages.

        Raises:
            BadAudioError: naming the clip.
            ValueError: the same, where it is heard as a whole and is longer than the tower takes.
        """
        num_clips = num_silent = 0
        for position, clip in enumerate(clips):
            num_clips += 1
            silent = True
            for chunk in self._cut(clip, sampling_rate, f"clip {first + position}"):
                if chunk.pcm.any():
                    silent = False
                    yield position, chunk
            num_silent += silent
        if num_silent:
            logger.warning("%d of %d clips are silent: no term is heard in them", num_silent, num_clips)

    def _cut(self, clip: Any, sampling_rate: int | None, name: str) -> Iterator[Chunk]:
        name = name_of_audio(clip) or name
        num_samples = 0
        if self.sizes is None:  # heard as a whole
            pcm = clip_pcm(clip, sampling_rate, name=name)
            self.model.audio_tower.check_lengths(torch.tensor([len(pcm)]), [name])
            num_samples = len(pcm)
            yield Chunk(pcm, 0, 0.0, math.inf)
        else:
            chunker = self.chunker()
            for pcm in clip_blocks(clip, sampling_rate, name=name):
                num_samples += len(pcm)
                yield from chunker.feed(pcm)
            yield from chunker.finish() if num_samples >= self.least_samples else ()
        if num_samples < self.least_samples:
            raise BadAudioError(f"{name}: {num_samples} samples are too short to hear a term in")

    @torch.inference_mode()
    def encode_chunks(
        self, chunks: Iterable[tuple[int, Chunk]], batch_size: int, *, with_phonemes: bool = False
    ) -> Iterator[tuple[list[int], list[Chunk], AudioEmbeddings]]:
        """Batches of chunks of like length: the clips they are of, they, and the windows that each chunk owns.

        Of a stream of chunks, some are taken at a time, so that it may be of any length.

        The vectors are on the model's device; spans count in seconds of the clip. With `with_phonemes`, what the
        phoneme head hears in each chunk comes with them.
        """
        for items in _batches_of_like_length(chunks, batch_size):
            positions, batch = zip(*items, strict=True)
            pcm_CS, num_samples_C = pad_pcm([chunk.pcm for chunk in batch])
            num_frames_C = self.model.audio_tower.num_frames(num_samples_C)
            first_C = torch.tensor([chunk.first_frame for chunk in batch], dtype=torch.float32)
            spans = self._owned_windows(batch, num_frames_C, first_C)
            inputs = {"pcm_BS": pcm_CS, "num_samples_B": num_samples_C}
            found = self.model.embed_windows(inputs, num_frames_C, spans, first_C, with_phonemes=with_phonemes)
            yield list(positions), list(batch), found

    def encode(self, clips: Sequence[Any], *, sampling_rate: int | None = None, batch_size: int = 8) -> AudioEmbeddings:
        """All windows of every clip, on the CPU; a silent clip has none. Raises as `cut`."""
        if not len(clips):
            raise ValueError("no clips to encode")
        vectors = [[torch.zeros(0, self.model.config.embedding_dim)] for _ in clips]
        spans = [[torch.zeros(0, 2)] for _ in clips]
        for positions, _, found in self.encode_chunks(self.cut(clips, sampling_rate), batch_size):
            vectors_CWD = found.vectors.float().cpu()
            for row, position in enumerate(positions):
                vectors[position].append(vectors_CWD[row, found.mask[row]])
                spans[position].append(found.spans[row, found.mask[row]])
        return AudioEmbeddings.from_clips(list(map(torch.cat, vectors)), list(map(torch.cat, spans)))

    def _owned_windows(self, chunks: Sequence[Chunk], num_frames_C: torch.Tensor, first_C: torch.Tensor) -> Spans:
        """The windows of the grid that end in the part that a chunk owns, in frames of the chunk."""
        grid = window_grid(num_frames_C, self.sizes, self.stride)
        owned_C2 = torch.tensor([(chunk.owned_from, chunk.owned_to) for chunk in chunks])
        ends_at_P = grid.end_P + first_C[grid.clip_index_P]
        owned_P2 = owned_C2[grid.clip_index_P]
        owned_P = (ends_at_P > owned_P2[:, 0]) & (ends_at_P <= owned_P2[:, 1])
        return Spans(*(values[owned_P] for values in grid))


def _batches_of_like_length(chunks: Iterable[tuple[int, Chunk]], batch_size: int) -> Iterator[list[tuple[int, Chunk]]]:
    remaining = iter(chunks)
    while group := list(islice(remaining, _CHUNKS_AT_ONCE)):
        group.sort(key=lambda item: len(item[1].pcm))
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def _window_sizes(model: TermRetrievalModel, windows: Windows) -> tuple[list[int] | None, int | None]:
    """Sizes and stride in frames; None and None where a clip is one window."""
    if windows == "clip":
        return None, None
    chosen = model.config.windows if windows == "auto" else windows
    if isinstance(chosen, Mapping):
        return sorted(chosen["sizes"]), chosen["stride"]
    if chosen is not None:
        raise ValueError(f'windows must be "auto", "clip" or a mapping with sizes and stride, not {chosen!r}')
    rate = model.frame_rate
    return [round(seconds * rate) for seconds in DEFAULT_WINDOW_SECONDS], max(1, round(DEFAULT_STRIDE_SECONDS * rate))


def clips_of(clips: Any) -> Iterable[Any]:
    """Clips one by one, of a list, an iterator, or the rows of a `Dataset`, whose audio is not decoded by `datasets`.

    Raises:
        ValueError: one clip, or something that is no list of clips.
    """
    if isinstance(clips, datasets.Dataset | datasets.IterableDataset):
        return _rows(clips)
    if isinstance(clips, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(f"a DatasetDict has several splits ({', '.join(map(str, clips))}): give one of them")
    is_pair = isinstance(clips, tuple) and len(clips) == 2 and any(isinstance(part, int | np.integer) for part in clips)
    one = isinstance(clips, str | Path | bytes | np.ndarray | Mapping | AudioClip | Recording)
    if one or is_pair or hasattr(clips, "read") or hasattr(clips, "detach") or not hasattr(clips, "__iter__"):
        what = "a pair of array and rate" if is_pair else type(clips).__name__
        raise ValueError(f"expected a list of clips, not {what}: give [clip], or call `search` for one")
    return clips


def _rows(rows: Any) -> Any:
    columns = rows.column_names or []
    if "audio" not in columns:
        raise ValueError(
            f"the dataset has no column 'audio' but {', '.join(map(repr, columns))}: `.rename_column(…, 'audio')` the "
            "one that holds the recordings"
        )
    if isinstance((rows.features or {}).get("audio"), datasets.Audio):
        return rows.cast_column("audio", datasets.Audio(decode=False))
    return rows


class ChunkBar:
    """A bar over the chunks of clips, or lines in the log, where it takes a while.

    How many there are is an estimate until the last clip is read. `num_clips` counts those that were, so far.
    """

    def __init__(self, encoder: ClipEncoder, clips: Iterable[Any], show_progress: bool) -> None:
        self.num_clips = self._num_cut = 0
        self._encoder, self._clips = encoder, clips
        self._of_clips = len(clips) if isinstance(clips, Sized) else None
        self._is_read = False
        self._bar = Progress(desc="searching", unit="chunk", shown=show_progress, delay=_BAR_AFTER_SECONDS)

    def __enter__(self) -> ChunkBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def cut(self, sampling_rate: int | None) -> Iterator[tuple[int, Chunk]]:
        """The chunks of the clips; see `ClipEncoder.cut`."""
        for item in self._encoder.cut(self._counted(), sampling_rate):
            self._num_cut += 1
            yield item

    def update(self, num_chunks: int) -> None:
        """So many chunks are done."""
        if self._is_read:
            self._bar.total = self._num_cut
        elif self._of_clips:
            self._bar.total = round(self._num_cut * max(1.0, self._of_clips / self.num_clips))
        self._bar.update(num_chunks)

    def _counted(self) -> Iterator[Any]:
        for clip in self._clips:
            self.num_clips += 1
            yield clip
        self._is_read = True
