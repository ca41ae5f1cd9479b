from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.cli.app import with_flags
from qwen_term_retrieval.cli.packs import num_bytes

pytestmark = pytest.mark.usefixtures("hf_home")


def qtr(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pack_inspect_and_verify_work_in_turn(corpus, tmp_path):
    packed = qtr("pack", corpus, tmp_path / "pack", "--workers", 1)
    assert packed.exit_code == 0, packed.output
    assert "12 clips" in packed.stdout
    assert "train/0001" in qtr("inspect", tmp_path / "pack").stdout
    verified = qtr("verify", tmp_path / "pack")
    assert verified.exit_code == 0
    assert "whole" in verified.stdout


def test_verify_exits_with_1_and_names_the_damage(corpus, tmp_path):
    qtr("pack", corpus, tmp_path / "pack", "--workers", 1)
    shard = tmp_path / "pack" / "shard_00000.dat"
    damaged = bytearray(shard.read_bytes())
    damaged[5000] ^= 1
    shard.write_bytes(damaged)
    verified = qtr("verify", tmp_path / "pack")
    assert verified.exit_code == 1
    assert "shard_00000.dat: damaged; clips train/0000" in verified.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "{corpus}/nowhere", "{out}"], "does not exist"),
        (["pack", "{corpus}", "{corpus}"], "exists and is not a pack"),
        (["inspect", "{corpus}"], "is not a pack"),
        (["verify", "{corpus}"], "is not a pack"),
    ],
)
def test_mistakes_are_one_line_without_a_traceback(arguments, message, corpus, tmp_path):
    result = qtr(*(argument.format(corpus=corpus, out=tmp_path / "out") for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_bad_audio_stops_the_command_or_is_skipped_where_asked(corpus, tmp_path):
    (corpus / "train" / "0000.flac").write_bytes(b"broken")
    assert qtr("pack", corpus, tmp_path / "pack", "--workers", 1).exit_code == 1
    skipped = qtr("pack", corpus, tmp_path / "pack", "--workers", 1, "--on-error", "skip", "--quiet")
    assert skipped.exit_code == 0
    assert "1 utterances were skipped or silenced" in skipped.stdout


def test_a_remedy_names_the_flags_of_the_command_not_the_arguments_of_the_library(corpus, tmp_path):
    qtr("pack", corpus, tmp_path / "pack", "--workers", 1)
    assert "or --overwrite\n" in qtr("pack", corpus, tmp_path / "pack").stderr
    (corpus / "train" / "0000.flac").write_bytes(b"broken")
    said = qtr("pack", corpus, tmp_path / "new", "--workers", 1).stderr
    assert "or pack with --on-error skip or --on-error silence." in said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("or overwrite=True", "or --overwrite"),
        ("set shard_bytes=0 and num_workers=2", "set --shard-bytes 0 and num_workers=2"),
        ("say which: columns={'audio': 'name'}", "say which: --column audio=name"),
        ('format="it\'s" (x=1)', "--format it's (x=1)"),
    ],
)
def test_arguments_that_the_command_has_no_flag_for_stay_as_they_are(message, said):
    assert with_flags(message, ["--overwrite", "--shard-bytes", "--column", "--format"]) == said


def test_packs_grow_merge_and_become_files_again(corpus, make_corpus, tmp_path):
    qtr("pack", corpus, tmp_path / "a", "--workers", 1, "--shard-bytes", "150kB")
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"audio": str(corpus / "train" / "0001.flac"), "key": "again"}))
    appended = qtr("append", more, tmp_path / "a", "--workers", 1)
    assert appended.exit_code == 0, appended.output
    assert f"added to {tmp_path / 'a'}: 1 clips" in appended.stdout
    refused = qtr("append", more, tmp_path / "a", "--workers", 1)
    assert refused.exit_code == 1
    assert "'again'" in refused.stderr
    qtr("pack", make_corpus(tmp_path / "other", first_seed=50), tmp_path / "b", "--workers", 1)
    clash = qtr("merge", tmp_path / "a", tmp_path / "b", tmp_path / "all")
    assert clash.exit_code == 1
    assert "share 12 keys" in clash.stderr
    qtr("pack", more, tmp_path / "c", "--workers", 1)
    qtr("pack", corpus, tmp_path / "d", "--workers", 1)
    merged = qtr("merge", tmp_path / "c", tmp_path / "d", tmp_path / "all")
    assert merged.exit_code == 0, merged.output
    assert "13 clips in 2 shards" in merged.stdout
    exported = qtr("export", tmp_path / "all", tmp_path / "files", "--format", "wav")
    assert exported.exit_code == 0, exported.output
    assert "13 clips" in exported.stdout
    assert len(list((tmp_path / "files").rglob("*.wav"))) == 13
    assert "2 increments" in qtr("inspect", tmp_path / "all").stdout
    assert qtr("verify", tmp_path / "all").exit_code == 0


def test_how_a_corpus_is_to_be_read_can_be_said(corpus, tmp_path):
    table = corpus / "term_chunks" / "POD" / "list.csv"
    table.parent.mkdir(parents=True)
    shutil.copy(corpus / "train" / "0001.flac", table.parent / "a.flac")
    table.write_text("path,sentence\na.flac,hello\n")
    columns = (
        "--column",
        "text=sentence",
        "--column",
        "audio=path",
        "--key-rule",
        "term_chunks",
        "--format",
        "manifest",
    )
    packed = qtr("pack", table, tmp_path / "pack", "--workers", 1, *columns)
    assert packed.exit_code == 0, packed.output
    assert "POD/a  " in qtr("inspect", tmp_path / "pack").stdout
    assert "'hello'" in qtr("inspect", tmp_path / "pack").stdout
    refused = qtr("append", table, tmp_path / "pack", "--workers", 1, *columns)
    assert "'POD/a'" in refused.stderr
    assert "write text=raw_text" in qtr("pack", table, tmp_path / "b", "--column", "text").stderr
    assert "unknown format 'tar'" in qtr("pack", table, tmp_path / "b", "--format", "tar").stderr


@pytest.mark.parametrize(
    ("size", "expected"),
    [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("4096", 4096), ("3g", 3 * 10**9), ("7B", 7)],
)
def test_sizes_are_written_as_people_write_them(size, expected):
    assert num_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1", "0", "2XB", "1e9", "12i"])
def test_what_is_no_size_is_an_error_that_shows_one(size, corpus, tmp_path):
    result = qtr("pack", corpus, tmp_path / "pack", f"--shard-bytes={size}")
    assert result.exit_code == 2
    assert "512MiB" in result.stderr


@pytest.mark.parametrize("command", ["pack", "append", "merge", "export", "inspect", "verify"])
def test_help_teaches_by_example(command):
    assert f"qtr {command} " in qtr(command, "--help").stdout
