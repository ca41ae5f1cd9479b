"""Clips to the windows that a search scores.

`ClipEncoder` takes audio of any kind, cuts what is longer than `CHUNK_SECONDS` into overlapping chunks, encodes chunks
of like length together, and pools every window of the grid. Memory follows the batch, not the recording.

Shapes: C chunks, W windows, P windows of all chunks, S samples, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.models.embeddings import AudioEmbeddings, Spans
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.windows import window_grid
from qwen_term_retrieval.retrieval.stream import Chunk, Chunker

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 8.0
MARGIN_SECONDS = 0.2
# For models trained on whole clips, which name no windows of their own: terms of one to four words last this long.
DEFAULT_WINDOW_SECONDS = (0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2)
DEFAULT_STRIDE_SECONDS = 0.1

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

    def chunker(self, hop_seconds: float) -> Chunker:
        """Cuts a recording for this grid, a chunk every `hop_seconds`."""
        if self.sizes is None or self.stride is None:
            raise ValueError('a recording cannot be taken as one window: windows="clip" is for clips')
        return Chunker(
            samples_per_frame=self.samples_per_frame,
            longest_window=max(self.sizes),
            stride=self.stride,
            hop=max(1, round(hop_seconds * self.model.frame_rate)),
            margin=max(1, round(MARGIN_SECONDS * self.model.frame_rate)),
        )

    def check_length(self, num_samples: int) -> None:
        """Refuse a clip in which nothing can be heard.

        Raises:
            BadAudioError: without its name.
        """
        if num_samples < 2 * self.samples_per_frame:
            raise BadAudioError(f"{num_samples} samples are too short to hear a term in")

    def cut(self, clips: Sequence[Any], sampling_rate: int | None = None, *, first: int = 0) -> list[tuple[int, Chunk]]:
        """(position of the clip, chunk) of all clips. Silent chunks are left out, silent clips counted in the log.

        Args:
            clips: see `clip_pcm`.
            sampling_rate: of arrays, in Hz.
            first: number of the first clip, for messages.

        Raises:
            BadAudioError: naming the clip.
            ValueError: the same, where it is heard as a whole and is longer than the tower takes.
        """
        chunks: list[tuple[int, Chunk]] = []
        num_silent = 0
        for position, clip in enumerate(clips):
            name = str(clip) if isinstance(clip, str | Path) else f"clip {first + position}"
            pcm = clip_pcm(clip, sampling_rate, name=name)
            try:
                self.check_length(len(pcm))
            except BadAudioError as error:
                raise BadAudioError(f"{name}: {error}") from error
            if self.sizes is None:  # heard as a whole
                self.model.audio_tower.check_lengths(torch.tensor([len(pcm)]), [name])
            num_silent += not pcm.any()
            chunks += [(position, chunk) for chunk in self._cut(pcm) if chunk.pcm.any()]
        if num_silent:
            logger.warning("%d of %d clips are silent: no term is heard in them", num_silent, len(clips))
        return chunks

    def _cut(self, pcm: np.ndarray) -> Iterator[Chunk]:
        if self.sizes is None or len(pcm) <= CHUNK_SECONDS * SAMPLING_RATE:
            yield Chunk(pcm, 0, 0.0, math.inf)
            return
        longest_seconds = max(self.sizes) / self.model.frame_rate
        chunker = self.chunker(max(1.0, CHUNK_SECONDS - longest_seconds - 2 * MARGIN_SECONDS))
        yield from chunker.feed(pcm)
        yield from chunker.finish()

    @torch.inference_mode()
    def encode_chunks(
        self, chunks: Sequence[tuple[int, Chunk]], batch_size: int, *, with_phonemes: bool = False
    ) -> Iterator[tuple[list[int], list[Chunk], AudioEmbeddings]]:
        """Batches of chunks of like length: the clips they are of, they, and the windows that each chunk owns.

        The vectors are on the model's device; spans count in seconds of the clip. With `with_phonemes`, what the
        phoneme head hears in each chunk comes with them.
        """
        by_length = sorted(chunks, key=lambda item: len(item[1].pcm))
        for first in range(0, len(by_length), batch_size):
            positions, batch = zip(*by_length[first : first + batch_size], strict=True)
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
