"""The rows of a corpus without a pack: the same columns, in the same order, over audio that stays in its files.

Durations come from the files' headers, which agree with decoding to the sample in every format that is read here; no
audio is decoded until a row's samples are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from qwen_term_retrieval.audio.decoding import resampled_length
from qwen_term_retrieval.audio.file_audio import FileAudio
from qwen_term_retrieval.audio.sound_files import probe
from qwen_term_retrieval.audio.sources import FileSlice, is_url
from qwen_term_retrieval.corpora.corpus import with_unique_keys
from qwen_term_retrieval.corpora.utterance import Utterance, split_rank
from qwen_term_retrieval.errors import BadAudioError, CorpusError
from qwen_term_retrieval.packs.row_schema import row_features
from qwen_term_retrieval.packs.writing.parts import clip_row
from qwen_term_retrieval.packs.writing.segments import segment_bounds

logger = logging.getLogger(__name__)

ROWS_PER_TABLE = 1024
# Headers are read by threads: on a network disk, opening a file is mostly waiting.
_THREADS = 8


class LooseCorpus:
    """Rows of utterances whose audio lies in files.

    One pass over the corpus finds its splits and the types of its columns; then one pass a split gives the rows.

    Args:
        utterances: begins the corpus anew each time it is called; it pickles, for streaming workers.
        sampling_rate: of the samples served, in Hz.
        on_error: "raise", or "skip" rows whose file has no readable header.

    Raises:
        CorpusError: a row is bad, a key is there twice, or a column mixes types.
        ValueError: another `on_error`.
    """

    def __init__(self, utterances: Callable[[], Iterator[Utterance]], sampling_rate: int, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: without a pack it must be 'raise' or 'skip'; or use packed=True")
        self._utterances = utterances
        self._sampling_rate = sampling_rate
        self._on_error = on_error
        splits: set[str] = set()
        extras = pa.schema([])
        rows = with_unique_keys(utterances())
        while batch := list(islice(rows, ROWS_PER_TABLE)):
            splits.update(utterance.split for utterance in batch)
            extras = _with_types_of_extras(extras, batch)
        if not splits:
            raise CorpusError("the corpus has no rows")
        self.splits = sorted(splits, key=split_rank)
        self.features = datasets.Features({**row_features(sampling_rate, extras), "audio": FileAudio(sampling_rate)})

    def tables(self, split: str) -> Iterator[pa.Table]:
        """The rows of a split, some hundreds at a time.

        Raises:
            CorpusError: a file is missing or has no readable header (with `on_error="raise"`), or there is no file.
        """
        schema = self.features.arrow_schema
        utterances = (utterance for utterance in self._utterances() if utterance.split == split)
        with ThreadPoolExecutor(_THREADS) as threads:
            while batch := list(islice(utterances, ROWS_PER_TABLE)):
                rows = [row for row in threads.map(self._row, batch) if row is not None]
                if rows:
                    yield pa.Table.from_pylist(rows, schema=schema)

    def _row(self, utterance: Utterance) -> dict[str, Any] | None:
        try:
            reference = _reference(utterance, self._sampling_rate)
            row = clip_row(utterance, reference["length"] / self._sampling_rate)
        except BadAudioError as error:
            if self._on_error == "raise":
                raise CorpusError(
                    f"{utterance.where}: {error}. Mend or drop the row, or load with on_error='skip'."
                ) from error
            logger.warning("%s: %s (skip)", utterance.where, error)
            return None
        return {**utterance.extra, **row, "audio": reference}


def _with_types_of_extras(schema: pa.Schema, batch: Sequence[Utterance]) -> pa.Schema:
    """`schema` with the extra columns of a batch; numbers of mixed types are promoted."""
    fields = []
    for name in dict.fromkeys(name for utterance in batch for name in utterance.extra):
        try:
            fields.append(pa.field(name, pa.array([utterance.extra.get(name) for utterance in batch]).type))
            schema = pa.unify_schemas([schema, pa.schema(fields)], promote_options="permissive")
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise CorpusError(
                f"{batch[0].where}, or a row after it: column {name!r} mixes types ({error}); give its rows one type"
            ) from error
    return schema


def _reference(utterance: Utterance, rate: int) -> dict[str, Any]:
    """The fields of a `FileClip`."""
    audio = utterance.audio
    if not isinstance(audio, str | Path | FileSlice):
        raise CorpusError(
            f"{utterance.where}: its audio is held in memory and lies in no file to be read later; load it with "
            "packed=True"
        )
    header = probe(audio)
    if utterance.channel is not None and not 0 <= utterance.channel < header.num_channels:
        raise BadAudioError(f"has no channel {utterance.channel}, counted from 0, but {header.num_channels} in all")
    num_samples = resampled_length(header.num_frames, header.sampling_rate, rate)
    start, end = segment_bounds(utterance, num_samples, rate)
    place: dict[str, Any] = {"byte_offset": None, "suffix": "", "modified": None, "num_bytes": None}
    if isinstance(audio, FileSlice):
        place |= {"byte_offset": audio.offset, "num_bytes": audio.num_bytes, "suffix": audio.suffix}
        audio = audio.path
    if not is_url(str(audio)):
        audio = Path(audio).absolute()
        status = audio.stat()
        place["modified"] = status.st_mtime_ns
        place["num_bytes"] = status.st_size if place["num_bytes"] is None else place["num_bytes"]
    path = str(audio)
    if path.encode(errors="ignore").decode() != path:
        raise BadAudioError("its name is no UTF-8, and so no cell of a table; rename it, or load with packed=True")
    window = {"channel": utterance.channel, "start": start, "length": end - start}
    return {"key": utterance.key, "path": path, **place, **window}
