from __future__ import annotations

import pytest
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app


def qtr(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pack_inspect_and_verify_work_in_turn(corpus, tmp_path):
    packed = qtr("pack", corpus, tmp_path / "pack", "--workers", 1)
    assert packed.exit_code == 0, packed.output
    assert "12 clips" in packed.stdout
    assert "train/0001" in qtr("inspect", tmp_path / "pack").stdout
    verified = qtr("verify", tmp_path / "pack")
    assert verified.exit_code == 0
    assert "whole, 12 clips" in verified.stdout


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


@pytest.mark.parametrize("command", ["pack", "inspect", "verify"])
def test_help_teaches_by_example(command):
    assert f"qtr {command} " in qtr(command, "--help").stdout
