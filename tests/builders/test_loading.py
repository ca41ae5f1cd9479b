"""What a name of a dataset may be: a pack, a corpus folder, a folder with a card; and what each error says."""

import csv
import logging
import shutil
from pathlib import Path

import datasets
import pytest
import soundfile
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.packs.loading import load_rows, load_split
from qwen_term_retrieval.refusals import is_refusal
from qwen_term_retrieval.training.arguments import DataArguments
from qwen_term_retrieval.training.run import checked_rows

DEMO = Path(__file__).parents[2] / "builders" / "term_audio" / "demo"


@pytest.fixture(scope="module")
def clips():
    return sorted((DEMO / "test" / "flite-awb").glob("*.ogg"))[:3]


@pytest.fixture
def recordings(clips, tmp_path):
    """A corpus folder as the README shows it, in two splits."""
    for split in ("train", "validation"):
        folder = tmp_path / "recordings" / split
        folder.mkdir(parents=True)
        with (folder / "metadata.csv").open("w", newline="") as file:
            rows = [(shutil.copy(clip, folder / clip.name).name, f"term {clip.stem}", clip.stem) for clip in clips]
            csv.writer(file).writerows([("file_name", "text", "terms"), *rows])
    return tmp_path / "recordings"


def test_a_corpus_folder_gives_the_rows_of_the_pack_that_is_made_of_it(recordings, tmp_path):
    rows = load_rows(str(recordings))
    assert {split: len(of_split) for split, of_split in rows.items()} == {"train": 3, "validation": 3}
    assert CliRunner().invoke(app, ["pack", str(recordings), str(tmp_path / "pack"), "-q"]).exit_code == 0
    packed = load_rows(str(tmp_path / "pack"))
    for name in ("key", "text", "terms", "duration"):
        assert rows["train"][name] == packed["train"][name]
    assert (rows["train"][0]["audio"].pcm == packed["train"][0]["audio"].pcm).all()


def test_training_takes_a_corpus_folder(recordings):
    rows = checked_rows(DataArguments(dataset=str(recordings), test_split=None))
    assert soundfile.info(recordings / "train" / f"{rows['train'][0]['terms'][0]}.ogg").duration == pytest.approx(
        rows["train"][0]["duration"], abs=0.1
    )


def test_a_corpus_folder_is_known_with_and_without_a_card():
    of_the_card = load_rows("builders/term_audio")
    without = load_rows(str(DEMO))
    assert {split: rows["key"][:] for split, rows in of_the_card.items()} == {
        split: rows["key"][:] for split, rows in without.items()
    }


def test_a_split_that_is_not_there_is_named_with_what_makes_one(recordings):
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'validation'\]. Put the .* with --split"):
        load_split(str(recordings), "test")
    with pytest.raises(ValueError, match="column `split`; or choose another with --test_split"):
        checked_rows(DataArguments(dataset=str(recordings), test_split="exam"))


def test_a_corpus_without_the_usual_splits_is_trained_on_all_the_same(recordings, caplog):
    caplog.set_level(logging.INFO)
    shutil.rmtree(recordings / "validation")
    arguments = DataArguments(dataset=str(recordings), eval_fraction=0.4)
    rows = checked_rows(arguments)
    assert {split: len(rows[split]) for split in rows} == {"train": 2, "validation": 1}
    assert not {*rows["train"]["text"]} & {*rows["validation"]["text"]}
    assert arguments.test_split is None
    said = caplog.text
    assert "has no split 'validation': 1 of 3 clips are held out to judge by (by text" in said
    assert "has no split 'test': nothing is judged at the end" in said


def rows_without_duration(folder):
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n---\n")
    (folder / "rows.csv").write_text("file,text\na.wav,hello\n")
    return str(folder)


def a_card_of_nothing(folder):
    folder.mkdir()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n---\n")
    return str(folder)


def a_file(folder):
    (folder.parent / "rows.jsonl").write_text("{}\n")
    return str(folder.parent / "rows.jsonl")


def a_folder_without_audio(folder):
    folder.mkdir()
    (folder / "notes.md").write_text("nothing to hear\n")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (rows_without_duration, "no column audio, terms, duration, only file, text"),
        (a_card_of_nothing, "its card names a file that is not there"),
        (a_file, r"rows\.jsonl is a file: make a pack of it with `qtr pack"),
        (a_folder_without_audio, "holds no audio and no manifest"),
        (lambda _: "packs/nosuch", "no dataset 'packs/nosuch': no folder here, nor given by the Hub"),
        (lambda _: "/nowhere/packs/nosuch", "no dataset '/nowhere/packs/nosuch': no folder here"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line_that_says_what_it_is(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        load_rows(make(tmp_path / "folder"))
    assert is_refusal(refused.value)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_dataset_that_was_saved_by_datasets_is_a_corpus_folder_too(demo_rows, tmp_path, name):
    saved = tmp_path / "saved"
    rows = [{"audio": str(DEMO / f"{key}.ogg"), "text": "a", "terms": ["a"]} for key in demo_rows[name]["key"][:2]]
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows)}).save_to_disk(saved)
    assert len(load_rows(str(saved))[name]) == 2
