"""Shards of the earlier system are read as they were, and refused where they are damaged or pickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qwen_term_retrieval import CorpusError, MMapAudioCollection, Pack, legacy_utterances, pack_corpus, read_corpus
from qwen_term_retrieval.cli import app
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.shards import ShardIndex


def write_legacy(folder: Path, clips: dict[str, np.ndarray], per_shard: int = 2, *, pickled: bool = True) -> Path:
    """As the earlier system wrote them: raw samples end to end, keys and paths as objects."""
    folder.mkdir()
    kind = object if pickled else str
    for number, start in enumerate(range(0, len(clips), per_shard)):
        keys = list(clips)[start : start + per_shard]
        lengths = [len(clips[key]) for key in keys]
        np.concatenate([clips[key] for key in keys]).astype("<i2").tofile(folder / f"shard_{number:05d}.dat")
        np.savez(
            folder / f"shard_{number:05d}.index.npz",
            key=np.array(keys, kind),
            relpath=np.array([f"term_chunks/{key}.wav" for key in keys], kind),
            dtype=np.array(["int16"] * len(keys), kind),
            offset=np.cumsum([0, *lengths[:-1]], dtype=np.int64),
            length=np.array(lengths, np.int64),
            sr=np.array(16_000),
        )
    return folder


@pytest.fixture
def clips(noise) -> dict[str, np.ndarray]:
    return {f"POD/POD{i:010d}/ü{i}": noise(i, 0.05 + i / 50) for i in range(5)}


@pytest.fixture
def folder(tmp_path, clips) -> Path:
    return write_legacy(tmp_path / "legacy", clips)


def test_every_recording_is_found_by_its_key(folder, clips):
    collection = MMapAudioCollection(folder, allow_pickle=True)
    assert len(collection) == len(clips)
    for number, (key, pcm) in enumerate(clips.items()):
        wav, sr, found, relpath = collection.get_by_key(key)
        assert wav.dtype == np.float32
        np.testing.assert_array_equal(wav, pcm.astype(np.float32) / 32768)
        assert (sr, found, relpath) == (16_000, key, f"term_chunks/{key}.wav")
        assert collection.k2loc[key] == divmod(number, 2)


def test_k2loc_is_a_mapping_without_a_dict(folder, clips):
    k2loc = MMapAudioCollection(folder, allow_pickle=True).k2loc
    assert dict(k2loc) == {key: divmod(number, 2) for number, key in enumerate(clips)}
    assert len(k2loc) == len(clips)
    assert "nothing" not in k2loc
    assert k2loc.get("nothing") is None
    with pytest.raises(KeyError, match="holds no recording 'nothing'; a key there is 'POD/POD"):
        _ = k2loc["nothing"]


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=30))
def test_of_recordings_with_one_key_the_last_counts(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("twice") / "legacy"
    keys = [key.encode("utf-8", "ignore").decode().replace("\0", "") or "x" for key in keys]
    folder.mkdir()
    np.arange(len(keys), dtype="<i2").tofile(folder / "shard_00000.dat")
    ones = np.ones(len(keys), np.int64)
    where = np.arange(len(keys))
    np.savez(
        folder / "shard_00000.index.npz", key=np.array(keys), relpath=np.array(keys), offset=where, length=ones, sr=8000
    )
    collection = MMapAudioCollection(folder)
    assert dict(collection.k2loc) == {key: (0, position) for position, key in enumerate(keys)}
    assert len(collection.k2loc) == len(set(keys))
    assert len(collection) == len(keys)


def test_a_pickled_index_is_refused_with_the_remedy_until_it_is_allowed(folder, tmp_path, clips):
    with pytest.raises(PackError, match=r"pickled objects.*allow_pickle=True"):
        MMapAudioCollection(folder)
    with pytest.raises(PackError, match=r"pickled objects.*allow_pickle=True"):
        next(legacy_utterances(folder))
    assert len(MMapAudioCollection(write_legacy(tmp_path / "plain", clips, pickled=False))) == len(clips)


class Explosive:
    def __reduce__(self):
        return exec, ("raise RuntimeError('this code came from the file')",)


def test_code_in_an_index_does_not_run_unless_allowed_and_what_it_raises_is_reported(folder):
    index = folder / "shard_00001.index.npz"
    arrays = dict(np.load(index, allow_pickle=True))
    np.savez(index, **{**arrays, "key": np.array([Explosive(), Explosive()], object)})
    with pytest.raises(PackError, match="pickled objects"):
        MMapAudioCollection(folder)
    with pytest.raises(PackError, match=r"shard_00001.index.npz: damaged index \(this code came from the file\)"):
        MMapAudioCollection(folder, allow_pickle=True)


def test_a_pack_opens_as_a_collection_too(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=60_000, num_workers=1, quiet=True)
    collection = MMapAudioCollection(tmp_path / "pack")
    assert len(collection) == len(collection.k2loc) == 12
    wav, sr, key, relpath = collection.get_by_key("test/0003")
    expected = soundfile.read(corpus / "test" / "0003.flac", dtype="float32")[0]
    np.testing.assert_array_equal(wav, expected)
    assert (sr, key, relpath) == (16_000, "test/0003", "test/0003")


def test_the_locations_in_a_pack_are_those_of_its_shards_indexes(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=60_000, num_workers=1, quiet=True)
    indexes = [ShardIndex.load(path) for path in sorted((tmp_path / "pack").glob("shard_*.index.npz"))]
    k2loc = MMapAudioCollection(tmp_path / "pack").k2loc
    assert len(indexes) > 1
    assert list(k2loc.items()) == [
        (key, (number, position)) for number, index in enumerate(indexes) for position, key in enumerate(index.keys)
    ]
    assert "nothing" not in k2loc
    with pytest.raises(KeyError, match="holds no recording 'nothing'; a key there is '"):
        _ = k2loc["nothing"]


def test_a_pack_gives_recordings_by_its_mapped_key_index_alone(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    (tmp_path / "pack" / "shard_00000.index.npz").unlink()
    assert MMapAudioCollection(tmp_path / "pack").get_by_key("test/0003")[2] == "test/0003"


def test_a_pack_is_not_taken_for_legacy_shards(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    with pytest.raises(CorpusError, match="is a pack already"):
        next(legacy_utterances(tmp_path / "pack"))


def test_legacy_shards_become_a_pack(folder, clips, tmp_path):
    pack_corpus(legacy_utterances(folder, allow_pickle=True), tmp_path / "pack", num_workers=2, quiet=True)
    rows = load_dataset(str(tmp_path / "pack"), split="train")
    assert rows["key"][:] == list(clips)
    assert rows["relpath"][:] == [f"term_chunks/{key}.wav" for key in clips]
    for row in rows:
        np.testing.assert_array_equal(row["audio"].pcm, clips[row["key"]])


def test_read_corpus_knows_their_folder(clips, tmp_path):
    folder = write_legacy(tmp_path / "plain", clips, pickled=False)
    assert [utterance.key for utterance in read_corpus(folder)] == list(clips)
    assert {utterance.split for utterance in read_corpus(folder, split="test")} == {"test"}


def test_read_corpus_reads_pickled_indexes_where_it_is_allowed(folder, clips):
    with pytest.raises(PackError, match="allow_pickle=True"):
        next(read_corpus(folder))
    read = list(read_corpus(folder, allow_pickle=True, split="test"))
    assert [utterance.key for utterance in read] == list(clips)
    assert {utterance.split for utterance in read} == {"test"}


def test_qtr_packs_pickled_indexes_where_it_is_allowed(folder, tmp_path):
    refused = CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "pack")])
    assert "who made it: --allow-pickle." in refused.stderr
    allowed = ["--allow-pickle", "--split", "test", "--workers", "1"]
    assert CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "pack"), *allowed]).exit_code == 0
    assert Pack.open(tmp_path / "pack").splits == ["test"]


def test_load_dataset_packs_a_folder_of_them(folder, clips):
    by_path = load_dataset(str(folder), split="train", allow_pickle=True)
    by_name = load_dataset("term_audio", data_dir=str(folder), split="train", allow_pickle=True)
    for rows in (by_path, by_name):
        assert {row["key"]: len(row["audio"].pcm) for row in rows} == {key: len(pcm) for key, pcm in clips.items()}
    with pytest.raises(PackError, match=r"allow_pickle=True"):
        load_dataset(str(folder), split="train")


def test_a_collection_pickles_as_its_folder(folder, clips):
    collection = pickle.loads(pickle.dumps(MMapAudioCollection(folder, allow_pickle=True)))
    assert dict(collection.k2loc) == dict(MMapAudioCollection(folder, allow_pickle=True).k2loc)


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "shard_00001.dat", 1), r"shard_00001.dat: \d+ bytes are no whole number of int16"),
        (
            lambda folder: cut(folder / "shard_00001.dat", 2),
            r"shard_00001.index.npz: clip 'POD.*outside of shard_00001",
        ),
        (
            lambda folder: (folder / "shard_00001.dat").write_bytes(b""),
            r"outside of shard_00001.dat with its 0 samples",
        ),
        (lambda folder: cut(folder / "shard_00001.index.npz", 100), r"shard_00001.index.npz: damaged index"),
        (lambda folder: (folder / "shard_00001.index.npz").unlink(), r"shard_00001.index.npz is missing"),
        (lambda folder: (folder / "shard_00001.dat").unlink(), r"shard_00001.dat is missing, of 3 shards"),
        (lambda folder: (folder / "shard_00002.dat").unlink(), r"shard_00002.dat is missing, of 3 shards"),
    ],
)
def test_a_cut_or_missing_file_is_an_error_that_names_it(folder, damage, message):
    damage(folder)
    with pytest.raises(PackError, match=message):
        MMapAudioCollection(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": np.array([-1, 0])}, "outside of"),
        ({"offset": np.array([0, 2**62])}, "outside of"),
        ({"length": np.array([0, 1])}, "outside of"),
        ({"length": np.array([1, 2**63 - 1])}, "outside of"),
        ({"length": np.array([1.0, 2.0])}, "no array 'length' with an integer a clip"),
        ({"offset": np.array([0])}, "no array 'offset' with an integer a clip"),
        ({"key": np.array([3, 4])}, "'key' does not hold text"),
        ({"relpath": np.array(["a"])}, "no array 'relpath'"),
        ({"sr": np.array(0)}, "no sampling rate"),
    ],
)
def test_impossible_numbers_in_an_index_are_an_error(folder, changed, message):
    index = folder / "shard_00001.index.npz"
    arrays = dict(np.load(index, allow_pickle=True))
    np.savez(index, **{**arrays, **changed})
    with pytest.raises(PackError, match=f"shard_00001.index.npz: .*{message}"):
        MMapAudioCollection(folder, allow_pickle=True)


def test_a_folder_without_shards_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no shard_00000\.dat"):
        MMapAudioCollection(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        MMapAudioCollection(tmp_path / "nowhere")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_index_is_an_error_or_gives_samples_of_the_shard(tmp_path, clips, data):
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        write_legacy(folder, clips, per_shard=5, pickled=False)
    index = folder / "shard_00000.index.npz"
    whole = index.read_bytes()
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    index.write_bytes(mutated[: data.draw(st.sampled_from([len(whole), len(whole) // 2]))])
    try:
        collection = MMapAudioCollection(folder)
        for key in collection.k2loc:
            assert len(collection.get_by_key(key)[0]) > 0
    except PackError:
        pass
    finally:
        index.write_bytes(whole)
