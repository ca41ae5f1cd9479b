"""NeMo manifests: JSON Lines with `audio_filepath`, `text`, `duration`, and for segments of a recording `offset`.

    {"audio_filepath": "audio/talk.flac", "offset": 12.3, "duration": 4.1, "text": "…", "lang": "en"}

https://docs.nvidia.com/nemo/speech/latest/asr/datasets.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_term_retrieval.corpora.locations import Location, parent
from qwen_term_retrieval.corpora.readers.json_rows import json_rows
from qwen_term_retrieval.corpora.readers.manifests import split_of_manifest
from qwen_term_retrieval.corpora.row_rules import RowRules, number_cell, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError


def read_nemo(manifest: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the utterances of a NeMo manifest.

    A row with an `offset` is `duration` seconds of its recording from there on; a row without is the whole file, whose
    `duration` is then only what someone measured. `lang` or `source_lang` is the language; `terms`, `key` and the like
    are read as in any manifest. A segment without a key is named by its file and its milliseconds.

    Raises:
        CorpusError: tarred manifests (`shard_id`): the audio stands in tars that the manifest does not name.
    """
    split = split_of_manifest(manifest, rules)
    folder = parent(manifest)
    for where, row in json_rows(manifest):
        if not isinstance(row, Mapping) or "audio_filepath" not in row:
            raise CorpusError(f"{where}: no audio_filepath; a NeMo manifest has one object a line, each with that key")
        if "shard_id" in row:
            raise CorpusError(
                f"{where}: shard_id marks a tarred NeMo manifest, which does not say where its tars are. Unpack them "
                "beside the manifest and drop shard_id, or give the folder of tars with format='webdataset'."
            )
        yield to_utterance(_to_row(row, where), where, folder, rules, folder_split=split)


def _to_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    ours = dict(row)
    for name in ("lang", "source_lang"):
        if "language" not in ours and isinstance(row.get(name), str):
            ours["language"] = ours.pop(name)
    offset, duration = number_cell(ours.pop("offset", None), "offset", where), row.get("duration")
    if offset is not None:
        seconds = number_cell(duration, "duration", where)
        ours["clip_start"], ours["clip_end"] = offset, None if seconds is None else offset + seconds
    return ours
