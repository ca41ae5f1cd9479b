"""Lhotse cut manifests (`cuts.jsonl.gz`), read without Lhotse.

    {"id": "talk-1", "start": 3.2, "duration": 2.5, "channel": 0, "type": "MonoCut",
     "supervisions": [{"id": "s1", "recording_id": "talk", "start": 0.0, "duration": 2.5, "text": "…", "speaker": "…"}],
     "recording": {"id": "talk", "sources": [{"type": "file", "channels": [0], "source": "talk.flac"}],
                   "sampling_rate": 16000, "num_samples": 960000, "duration": 60.0}}

https://lhotse.readthedocs.io/en/latest/cuts.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwen_term_retrieval.corpora.locations import Location, found_from, parent
from qwen_term_retrieval.corpora.readers.json_rows import json_rows
from qwen_term_retrieval.corpora.readers.manifests import split_of_manifest
from qwen_term_retrieval.corpora.row_rules import RowRules, number_cell, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError

_SAVE = "store the cuts' audio first: cuts.save_audios(folder).to_file('cuts.jsonl.gz')"
_SAME_S = 1e-3
_OURS = ("audio", "key", "text", "speaker", "language")


def read_lhotse(manifest: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield an utterance a cut; its key is the cut's id, its text those of its supervisions in order of time.

    Speaker and language are given where all supervisions agree. `custom` of the cut is read like the cells of any
    manifest: `terms`, `term_starts` and `term_ends` (seconds within the cut), `split`; all else passes through. A
    MonoCut is its one channel, a MultiCut of all channels their mean.

    Raises:
        CorpusError: mixed and padding cuts, cuts without a recording, with audio that is no file or URL, with
            augmentations still to be done, or with some but not all of several channels.
    """
    split = split_of_manifest(manifest, rules)
    folder = parent(manifest)
    # Named, so that a "transcript" in `custom` is one more column and no second text.
    rules = replace(rules, columns={**dict(zip(_OURS, _OURS, strict=True)), **rules.columns})
    for where, cut in json_rows(manifest):
        if not isinstance(cut, Mapping):
            raise CorpusError(f"{where}: expected a cut, not {str(cut)[:60]!r}")
        try:
            row = _to_row(cut, folder, where)
        except (AttributeError, TypeError) as error:
            raise CorpusError(f"{where}: not a cut as Lhotse writes it ({error}); write the manifest anew") from error
        yield to_utterance(row, where, folder, rules, folder_split=split)


def is_cut(row: Any) -> bool:
    """Whether a row of JSON is what Lhotse writes: a cut, or a recording or supervision, which are refused by name."""
    return isinstance(row, Mapping) and (
        str(row.get("type")).endswith("Cut")
        or {"id", "sources", "sampling_rate"} <= set(row)
        or {"id", "recording_id", "start", "duration"} <= set(row)
    )


def _to_row(cut: Mapping[str, Any], folder: Location, where: str) -> dict[str, Any]:
    if "type" not in cut:
        raise CorpusError(f"{where}: a recording or supervision, not a cut; make cuts of them: lhotse cut simple")
    if cut["type"] not in ("MonoCut", "MultiCut", "Cut"):  # Lhotse before 0.8 wrote Cut for MonoCut
        raise CorpusError(f"{where}: {cut['type']}, not a MonoCut or MultiCut; {_SAVE}")
    where = f"{where}, cut {cut.get('id')!r}"
    recording = cut.get("recording")
    if not isinstance(recording, Mapping):
        raise CorpusError(f"{where}: no recording; features alone cannot be packed, keep the recordings in the cuts")
    if recording.get("transforms"):
        raise CorpusError(f"{where}: its recording has augmentations still to be done (transforms); {_SAVE}")
    start, duration = (number_cell(cut.get(name), name, where) for name in ("start", "duration"))
    if start is None or duration is None:
        raise CorpusError(f"{where}: no start or duration; every cut has both, in seconds")
    whole = start == 0 and abs(duration - (number_cell(recording.get("duration"), "duration", where) or 0)) < _SAME_S
    supervisions = _supervisions(cut, where)
    source, channel = _source_and_channel(cut, recording, where)
    return {
        **(cut.get("custom") or {}),
        "key": cut.get("id"),
        "audio": found_from(folder, source),
        "text": " ".join(text for supervision in supervisions if (text := supervision.get("text"))),
        "speaker": _agreed(supervisions, "speaker"),
        "language": _agreed(supervisions, "language"),
        "clip_start": start,
        "clip_end": None if whole else start + duration,
        "clip_channel": channel,
    }


def _source_and_channel(cut: Mapping[str, Any], recording: Mapping[str, Any], where: str) -> tuple[str, int | None]:
    """Path or URL of the file with the cut's channels, and the one to take of it; None for the mean of all."""
    channel = cut.get("channel", 0)
    wanted = set(channel) if isinstance(channel, list) else {channel}
    sources = [source for source in recording.get("sources", ()) if wanted & set(source.get("channels", (0,)))]
    held = sources[0].get("channels", [0]) if len(sources) == 1 else []
    if len(sources) != 1 or not wanted <= set(held) or len(wanted) not in (1, len(held)):
        raise CorpusError(f"{where}: channels {sorted(wanted)} are neither one nor all of those of one file; {_SAVE}")
    (source,) = sources
    if source.get("type") not in ("file", "url") or not isinstance(source.get("source"), str):
        raise CorpusError(f"{where}: its audio is of type {source.get('type')!r}, not a file or URL; {_SAVE}")
    return source["source"], None if len(wanted) == len(held) else held.index(*wanted)


def _supervisions(cut: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    supervisions = cut.get("supervisions") or []
    if not isinstance(supervisions, list) or not all(isinstance(one, Mapping) for one in supervisions):
        raise CorpusError(f"{where}: supervisions is {str(supervisions)[:60]!r}; give a list of objects")
    return sorted(supervisions, key=lambda one: number_cell(one.get("start"), "start", where) or 0.0)


def _agreed(supervisions: Sequence[Mapping[str, Any]], name: str) -> Any:
    values = {supervision.get(name) for supervision in supervisions}
    return values.pop() if len(values) == 1 else None
