from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import DownloadMode, load_dataset

from qwen_term_retrieval import CorpusError, PackError, pack_corpus, read_corpus

pytestmark = pytest.mark.usefixtures("hf_home")


def texts(dataset) -> dict[str, list[str]]:
    return {split: rows["text"][:] for split, rows in dataset.items()}


def expected_texts(corpus: Path) -> dict[str, list[str]]:
    utterances = list(read_corpus(corpus))
    return {split: [u.text for u in utterances if u.split == split] for split in ("train", "test")}


def packs_in(hf_home: Path) -> list[Path]:
    return sorted(path.parent for path in (hf_home / "datasets").rglob("pack.json"))


def test_a_folder_of_manifests_is_packed_once_into_the_cache_and_reopens_in_under_a_second(corpus, hf_home):
    first = load_dataset(str(corpus))
    assert texts(first) == expected_texts(corpus)
    (pack,) = packs_in(hf_home)
    made = (pack / "pack.json").stat().st_mtime_ns
    started = time.perf_counter()
    again = load_dataset(str(corpus))
    clip = again["test"][0]["audio"].pcm
    assert time.perf_counter() - started < 1
    np.testing.assert_array_equal(clip, soundfile.read(corpus / "test" / "0000.flac", dtype="int16")[0])
    assert [(path / "pack.json").stat().st_mtime_ns for path in packs_in(hf_home)] == [made]


def test_by_name_a_corpus_loads_from_a_folder_or_from_manifests(corpus):
    assert texts(load_dataset("term_audio", data_dir=str(corpus))) == expected_texts(corpus)
    files = {"validation": str(corpus / "test.termaudio")}
    assert texts(load_dataset("term_audio", data_files=files)) == {"validation": expected_texts(corpus)["test"]}


def test_by_name_manifests_that_are_named_are_read_whatever_they_are_called(corpus):
    for split in ("train", "test"):
        (corpus / f"{split}.termaudio").rename(corpus / f"{split}.jsonl")
    expected = {
        split: [utterance.text for utterance in read_corpus(corpus / f"{split}.jsonl")] for split in ("train", "test")
    }
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    assert texts(load_dataset("term_audio", data_dir=str(corpus), data_files=files)) == expected


def test_by_name_an_audio_folder_with_metadata_loads_with_its_splits(corpus):
    rows = [{"file_name": f"{split}/0001.flac", "transcription": split} for split in ("train", "test")]
    (corpus / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for manifest in corpus.glob("*.termaudio"):
        manifest.unlink()
    assert texts(load_dataset("term_audio", data_dir=str(corpus))) == {"train": ["train"], "test": ["test"]}


def test_a_pack_opens_where_it_lies_by_path_and_by_name(corpus, hf_home, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    assert texts(load_dataset(str(tmp_path / "pack"))) == expected_texts(corpus)
    assert texts(load_dataset("term_audio", data_dir=str(tmp_path / "pack"))) == expected_texts(corpus)
    streamed = next(iter(load_dataset(str(tmp_path / "pack"), split="train", streaming=True)))
    assert streamed["audio"].length > 0
    assert packs_in(hf_home) == []


def test_a_corpus_streams_too(corpus):
    rows = load_dataset(str(corpus), split="test", streaming=True)
    assert [row["text"] for row in rows] == expected_texts(corpus)["test"]


def test_an_edited_manifest_gives_new_rows(corpus):
    load_dataset(str(corpus))
    manifest = corpus / "train.termaudio"
    manifest.write_text(manifest.read_text().replace("term 1", "changed"))
    assert "say changed" in load_dataset(str(corpus))["train"]["text"][:]


def test_two_folders_of_one_name_are_two_datasets(make_corpus, tmp_path):
    loaded = []
    for number, parent in enumerate(("a", "b")):
        corpus = make_corpus(tmp_path / parent / "corpus", first_seed=number * 100)
        pack_corpus(corpus, tmp_path / parent / "pack", num_workers=1, quiet=True)
        loaded += [load_dataset(str(corpus)), load_dataset(str(tmp_path / parent / "pack"))]
    assert texts(loaded[0]) == texts(loaded[1])
    assert texts(loaded[2]) == texts(loaded[3])
    assert texts(loaded[0]) != texts(loaded[2])


def test_a_cached_pack_that_was_deleted_is_made_again(corpus, hf_home):
    load_dataset(str(corpus))
    shutil.rmtree(packs_in(hf_home)[0])
    assert load_dataset(str(corpus))["train"][0]["audio"].length > 0
    assert len(packs_in(hf_home)) == 1


def test_forced_redownload_packs_changed_audio_again(corpus, noise):
    load_dataset(str(corpus))
    soundfile.write(corpus / "train" / "0000.flac", noise(77), 16_000)
    fresh = load_dataset(str(corpus), download_mode=DownloadMode.FORCE_REDOWNLOAD)
    np.testing.assert_array_equal(fresh["train"][0]["audio"].pcm, noise(77))


def test_packing_settings_and_workers_are_taken_from_load_dataset(corpus):
    (corpus / "train" / "0000.flac").write_bytes(b"broken")
    settings = {"data_dir": str(corpus), "num_proc": 2, "split": "train"}
    with pytest.raises(Exception, match=r"0000.flac: soundfile cannot read it"):
        load_dataset("term_audio", **settings)
    rows = load_dataset("term_audio", on_error="skip", sampling_rate=8000, **settings)
    assert len(rows) == 5
    assert rows[0]["audio"].sampling_rate == 8000


def test_audio_given_as_data_files_is_an_error_with_the_remedy(corpus):
    with pytest.raises(CorpusError, match=r"0000.flac: data_files must name manifests.*use data_dir"):
        load_dataset("term_audio", data_files=str(corpus / "train" / "0000.flac"))


def test_a_damaged_table_is_an_error_that_names_it(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    table = tmp_path / "pack" / "train-00000.parquet"
    damaged = bytearray(table.read_bytes())
    damaged[100:400] = bytes(300)
    table.write_bytes(damaged)
    with pytest.raises(PackError, match=r"train-00000.parquet: damaged table .*Copy the pack again"):
        load_dataset(str(tmp_path / "pack"))


def test_rows_are_kept_in_large_batches(corpus):
    rows = [{"audio": "train/0000.flac", "key": str(i)} for i in range(3000)]
    (corpus / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_dataset("term_audio", data_files=str(corpus / "many.jsonl"), split="train", packed=True)
    assert loaded.data.column(0).num_chunks == 1
