"""One toy corpus of real speech in every layout: what is said of it must not depend on how it is laid out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from qwen_term_retrieval.audio.decoding import pcm_blocks
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.packs.packing import pack_corpus

DEMO = Path(__file__).parents[2] / "builders" / "term_audio" / "demo"
RATE = 16_000


@dataclass(frozen=True)
class Said:
    """A clip of the toy corpus: seconds `start` to `end` of the recording `talk`."""

    key: str
    text: str
    terms: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    speaker: str
    start: float
    end: float


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, list[Said]]:
    """A recording `talk.flac` of three demo clips, the same clips as `clips/N.flac`, and what is said in them."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "clips").mkdir()
    said, talk, start = [], [], 0.0
    for line in (DEMO / "train.termaudio").read_text(encoding="utf-8").splitlines()[:3]:
        row = json.loads(line)
        pcm, rate = soundfile.read(DEMO / row["audio"], dtype="int16")
        assert rate == RATE
        key = f"clips/{len(said)}"
        soundfile.write(folder / f"{key}.flac", pcm, rate, subtype="PCM_16")
        spans = tuple(zip(row["term_starts"], row["term_ends"], strict=True))
        end = start + len(pcm) / RATE
        said.append(Said(key, row["text"], tuple(row["terms"]), spans, row["speaker"], start, end))
        talk.append(pcm)
        start = end
    soundfile.write(folder / "talk.flac", np.concatenate(talk), RATE, subtype="PCM_16")
    return folder, said


def rows_of(said: list[Said], suffix: str = ".flac") -> list[dict]:
    return [
        {
            "audio": f"{one.key}{suffix}",
            "text": one.text,
            "terms": list(one.terms),
            "term_starts": [start for start, _ in one.spans],
            "term_ends": [end for _, end in one.spans],
            "speaker": one.speaker,
            "language": "en",
        }
        for one in said
    ]


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_audio_folder(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copytree(toy / "clips", out / "clips")
    rows = [row | {"file_name": row.pop("audio")} for row in rows_of(said)]
    (out / "metadata.jsonl").write_text(json_lines(rows), encoding="utf-8")
    return out


def as_json_list(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copytree(toy / "clips", out / "clips")
    (out / "rows.json").write_text(json.dumps(rows_of(said), indent=1), encoding="utf-8")
    return out / "rows.json"


def as_json_lines_gz(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copytree(toy / "clips", out / "clips")
    (out / "rows.jsonl.gz").write_bytes(gzip.compress(json_lines(rows_of(said)).encode()))
    return out / "rows.jsonl.gz"


def as_tsv(toy: Path, said: list[Said], out: Path, opener: Callable = open) -> object:
    shutil.copytree(toy / "clips", out / "clips")
    path = out / ("rows.tsv" if opener is open else "rows.tsv.gz")
    rows = rows_of(said)
    lists = [name for name, value in rows[0].items() if isinstance(value, list)]
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(row | {name: "|".join(map(str, row[name])) for name in lists} for row in rows)
    return path


def as_tsv_gz(toy: Path, said: list[Said], out: Path) -> object:
    return as_tsv(toy, said, out, gzip.open)


def as_parquet(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copytree(toy / "clips", out / "clips")
    parquet.write_table(pa.Table.from_pylist(rows_of(said)), out / "rows.parquet")
    return out / "rows.parquet"


def as_parquet_of_bytes(toy: Path, said: list[Said], out: Path) -> object:
    rows = rows_of(said)
    for row in rows:
        row["audio"] = {"bytes": (toy / row["audio"]).read_bytes(), "path": row["audio"]}
    parquet.write_table(pa.Table.from_pylist(rows), out / "rows.parquet")
    return out / "rows.parquet"


def as_segments(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copy(toy / "talk.flac", out)
    rows = [
        row | {"audio": "talk.flac", "key": one.key, "clip_start": one.start, "clip_end": one.end}
        for row, one in zip(rows_of(said), said, strict=True)
    ]
    (out / "rows.jsonl").write_text(json_lines(rows), encoding="utf-8")
    return out / "rows.jsonl"


def as_nemo(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copy(toy / "talk.flac", out)
    rows = []
    for row, one in zip(rows_of(said), said, strict=True):
        del row["audio"]
        segment = {"audio_filepath": "talk.flac", "offset": one.start, "duration": one.end - one.start, "key": one.key}
        rows.append(segment | row | {"lang": row.pop("language")})
    for row in rows:
        del row["language"]
    (out / "train_manifest.json").write_text(json_lines(rows), encoding="utf-8")
    return out / "train_manifest.json"


def as_kaldi(toy: Path, said: list[Said], out: Path) -> object:
    shutil.copy(toy / "talk.flac", out)
    files = {
        "wav.scp": ["talk talk.flac"],
        "segments": [f"{one.key} talk {one.start} {one.end}" for one in said],
        "text": [f"{one.key} {one.text}" for one in said],
        "utt2spk": [f"{one.key} {one.speaker}" for one in said],
        "utt2lang": [f"{one.key} en" for one in said],
        "utt2terms": [f"{one.key} {'|'.join(one.terms)}" for one in said],
    }
    for name, lines in files.items():
        (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return out


def as_lhotse(toy: Path, said: list[Said], out: Path) -> object:
    """As `CutSet.to_file` of Lhotse writes MonoCuts."""
    shutil.copy(toy / "talk.flac", out)
    recording = {
        "id": "talk",
        "sources": [{"type": "file", "channels": [0], "source": "talk.flac"}],
        "sampling_rate": RATE,
        "num_samples": round(said[-1].end * RATE),
        "duration": said[-1].end,
        "channel_ids": [0],
    }
    cuts = []
    for one in said:
        supervision = {
            "id": f"{one.key}-s",
            "recording_id": "talk",
            "start": 0.0,
            "duration": one.end - one.start,
            "channel": 0,
            "text": one.text,
            "language": "en",
            "speaker": one.speaker,
        }
        cuts.append(
            {
                "id": one.key,
                "start": one.start,
                "duration": one.end - one.start,
                "channel": 0,
                "supervisions": [supervision],
                "recording": recording,
                "custom": {
                    "terms": list(one.terms),
                    "term_starts": [start for start, _ in one.spans],
                    "term_ends": [end for _, end in one.spans],
                },
                "type": "MonoCut",
            }
        )
    (out / "cuts.jsonl.gz").write_bytes(gzip.compress(json_lines(cuts).encode()))
    return out / "cuts.jsonl.gz"


def as_tars(toy: Path, said: list[Said], out: Path) -> object:
    for number, (row, one) in enumerate(zip(rows_of(said), said, strict=True)):
        with tarfile.open(out / f"train-{number:06d}.tar", "w") as tar:
            tar.add(toy / f"{one.key}.flac", f"{one.key}.flac")
            text = json.dumps({name: value for name, value in row.items() if name != "audio"}).encode()
            member = tarfile.TarInfo(f"{one.key}.json")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return out


def as_zip_url(toy: Path, said: list[Said], out: Path) -> object:
    folder = as_audio_folder(toy, said, out / "folder")
    with zipfile.ZipFile(out / "corpus.zip", "w") as archive:
        for file in Path(str(folder)).rglob("*"):
            archive.write(file, Path("inside") / file.relative_to(str(folder)))
    return f"zip://inside::{out / 'corpus.zip'}"


def as_memory_url(toy: Path, said: list[Said], out: Path) -> object:
    folder = as_audio_folder(toy, said, out / "folder")
    url = f"memory://{out.name}"
    fsspec.filesystem("memory").put(f"{folder}/", url, recursive=True)
    return f"{url}/metadata.jsonl"


def as_dataset_of_audio(toy: Path, said: list[Said], out: Path) -> object:
    rows = rows_of(said)
    for row in rows:
        row["audio"] = {"bytes": (toy / row["audio"]).read_bytes(), "path": row["audio"]}
    features = datasets.Features.from_arrow_schema(pa.Table.from_pylist(rows).schema)
    return datasets.Dataset.from_list(rows, features=features).cast_column("audio", datasets.Audio())


def as_dataset_of_bytes(toy: Path, said: list[Said], out: Path) -> object:
    rows = [row | {"key": one.key} for row, one in zip(rows_of(said), said, strict=True)]
    for row in rows:
        row["flac"] = (toy / row.pop("audio")).read_bytes()
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def as_streamed_dataset(toy: Path, said: list[Said], out: Path) -> object:
    return datasets.load_dataset("parquet", data_files=str(as_parquet_of_bytes(toy, said, out)), streaming=True)


def as_saved_dataset(toy: Path, said: list[Said], out: Path) -> object:
    as_dataset_of_bytes(toy, said, out).save_to_disk(out / "saved")
    return out / "saved"


def as_packed_dataset(toy: Path, said: list[Said], out: Path) -> object:
    folder = as_audio_folder(toy, said, out / "folder")
    pack_corpus(Path(str(folder)), out / "pack", num_workers=1, quiet=True)
    return datasets.load_dataset(str(out / "pack"))


def as_unpacked_dataset(toy: Path, said: list[Said], out: Path) -> object:
    folder = as_audio_folder(toy, said, out / "folder")
    return datasets.load_dataset("term_audio", data_dir=str(folder), packed=False)


LAYOUTS = {
    function.__name__.removeprefix("as_"): function
    for function in (
        as_audio_folder,
        as_json_list,
        as_json_lines_gz,
        as_tsv,
        as_tsv_gz,
        as_parquet,
        as_parquet_of_bytes,
        as_segments,
        as_nemo,
        as_kaldi,
        as_lhotse,
        as_tars,
        as_zip_url,
        as_memory_url,
        as_dataset_of_audio,
        as_dataset_of_bytes,
        as_streamed_dataset,
        as_saved_dataset,
        as_packed_dataset,
        as_unpacked_dataset,
    )
}


def heard(utterance: Utterance) -> np.ndarray:
    pcm = np.concatenate([block for block, _ in pcm_blocks(utterance.audio, RATE, array_rate=utterance.sampling_rate)])
    return pcm[round(utterance.start * RATE) : None if utterance.end is None else round(utterance.end * RATE)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same_of_the_same_corpus(layout, toy, tmp_path):
    folder, said = toy
    utterances = list(read_corpus(LAYOUTS[layout](folder, said, tmp_path)))
    expected = [(one.key, one.text, one.terms, one.speaker, "en", "train", {}) for one in said]
    assert [(u.key, u.text, u.terms, u.speaker, u.language, u.split, dict(u.extra)) for u in utterances] == expected
    for utterance, one in zip(utterances, said, strict=True):
        pcm, _ = soundfile.read(folder / f"{one.key}.flac", dtype="int16")
        np.testing.assert_array_equal(heard(utterance), pcm)
    spans = [utterance.term_spans for utterance in utterances]
    if layout == "kaldi":  # which has no place for them
        assert spans == [None] * len(said)
    else:
        np.testing.assert_allclose(spans, [one.spans for one in said], atol=1e-6)


@pytest.mark.parametrize("layout", ["nemo", "lhotse", "kaldi", "segments"])
def test_segments_of_a_recording_follow_each_other_and_share_its_audio(layout, toy, tmp_path):
    folder, said = toy
    utterances = list(read_corpus(LAYOUTS[layout](folder, said, tmp_path)))
    assert {str(u.audio) for u in utterances} == {str(tmp_path / "talk.flac")}
    for utterance, one in zip(utterances, said, strict=True):
        assert utterance.start == pytest.approx(one.start)
        assert utterance.end == pytest.approx(one.end)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_packs_to_the_same_clips(layout, toy, tmp_path):
    folder, said = toy
    pack_corpus(read_corpus(LAYOUTS[layout](folder, said, tmp_path)), tmp_path / "packed", num_workers=1, quiet=True)
    rows = datasets.load_dataset(str(tmp_path / "packed"), split="train")
    assert rows["key"][:] == [one.key for one in said]
    for row, one in zip(rows, said, strict=True):
        pcm, _ = soundfile.read(folder / f"{one.key}.flac", dtype="int16")
        np.testing.assert_array_equal(row["audio"].pcm, pcm)
        assert (row["text"], tuple(row["terms"])) == (one.text, one.terms)


def test_segments_of_both_channels_of_a_recording_are_packed_each_from_its_own(toy, tmp_path):
    folder, _ = toy
    talk, _ = soundfile.read(folder / "talk.flac", dtype="int16")
    soundfile.write(tmp_path / "call.wav", np.stack([talk, talk[::-1]], axis=1), RATE, subtype="PCM_16")
    rows = [
        {"audio": "call.wav", "clip_start": start, "clip_end": start + 1, "clip_channel": channel}
        for start in (0, 1)
        for channel in (0, 1)
    ]
    (tmp_path / "calls.jsonl").write_text(json_lines(rows), encoding="utf-8")
    pack_corpus(tmp_path / "calls.jsonl", tmp_path / "packed", num_workers=1, quiet=True)
    packed = {row["key"]: row["audio"].pcm for row in datasets.load_dataset(str(tmp_path / "packed"), split="train")}
    np.testing.assert_array_equal(packed["call-00001000-00002000-c0"], talk[RATE : 2 * RATE])
    np.testing.assert_array_equal(packed["call-00001000-00002000-c1"], talk[::-1][RATE : 2 * RATE])
