"""The training benchmark at tiny sizes: each part runs on a CPU, and refuses to time what does not compute the same."""

import json
import math

import pytest
import torch

from benchmarks.training import __main__ as training
from benchmarks.training import data as training_data
from benchmarks.training import forward as training_forward
from benchmarks.training import mel as training_mel
from benchmarks.training import mining as training_mining
from benchmarks.training import step as training_step
from benchmarks.training.clips import three_second_clips
from benchmarks.training.measure import OutputsDifferError, Row, comparison, largest_difference, take_turns, verdict
from benchmarks.training.report import report
from benchmarks.training.step import Steps
from qwen_term_retrieval.models.audio_towers import Qwen2AudioTower
from tests.processes.trainer import make_trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("training-benchmark")


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return Qwen2AudioTower(training.SMALL_ENCODER).eval()


def test_clips_last_three_seconds_and_are_the_same_each_time():
    clips, again = three_second_clips(3), three_second_clips(3)
    assert [clip.shape for clip in clips] == [(48_000,)] * 3
    assert all((clip == same).all() for clip, same in zip(clips, again, strict=True))


def test_the_forward_part_counts_a_tenth_of_the_operations_for_the_same_frames(work):
    found = training.QUICK["forward"](CPU, work)
    ours, stock = (found["rows"][name] for name in (training_forward.OURS, training_forward.STOCK))
    assert found["largest_difference_on_valid_frames"] < training_forward.TOLERANCE
    assert stock["flops"] / ours["flops"] > 1500 / 152  # frames of 30 s, of 3 s with four guard frames of silence
    assert found["value"] == pytest.approx(stock["median_seconds"] / ours["median_seconds"])


@torch.no_grad()
def test_a_tower_that_hears_the_padding_is_not_timed(tower, monkeypatch):
    clips = three_second_clips(2)
    assert training_forward.outputs_difference(tower, clips, CPU) < training_forward.TOLERANCE
    monkeypatch.setattr(training_forward, "stock_mask", lambda *args: None)
    with pytest.raises(OutputsDifferError, match="encoder frames: outputs differ by"):
        training_forward.outputs_difference(tower, clips, CPU)


def test_the_mel_part_times_equal_spectrograms(work):
    found = training.QUICK["mel"](CPU, work)
    assert found["largest_difference"] <= training_mel.TOLERANCE
    assert found["largest_difference_padded_to_the_longest"] > training_mel.TOLERANCE
    assert all(row["median_seconds"] > 0 for row in found["rows"].values())


def test_spectrograms_of_other_clips_are_not_timed(monkeypatch):
    plain = training_mel.log_mel
    monkeypatch.setattr(training_mel, "log_mel", lambda pcm_BS, *args, **kwargs: plain(pcm_BS.flip(0), *args, **kwargs))
    with pytest.raises(OutputsDifferError, match="mel frames"):
        training_mel.run(CPU, num_clips=2, repetitions=1)


def test_both_trainers_of_the_step_part_take_steps_on_the_same_towers(work):
    found = training.QUICK["step"](CPU, work)
    rows = found["rows"]
    assert [len(row["seconds"]) for row in rows.values()] == [training.SMALL_STEPS.steps] * 2
    assert rows[training_step.PEER]["flops"] > 8 * rows[training_step.OURS]["flops"]
    assert set(found["clips_per_second"]) == {training_step.OURS, training_step.PEER}


def test_towers_with_other_weights_or_adapters_are_not_compared(work, tmp_path):
    clocks = {name: training_step.StepClock(CPU) for name in (training_step.OURS, training_step.PEER)}
    steps = Steps(training.SMALL_STEPS.audio_tower, batch_size=4, steps=1)
    rows = training_step.packed_clips(work / f"step-clips-{steps.num_clips}", steps.num_clips)
    ours, peer = training_step.build_trainers(steps, rows, tmp_path, clocks, CPU)
    training_step.require_same_towers(ours.retrieval_model, peer)
    for values in peer.encoder.parameters():
        values.requires_grad_(False)
    with pytest.raises(OutputsDifferError, match="weights of other shapes"):
        training_step.require_same_towers(ours.retrieval_model, peer)
    with torch.no_grad():
        peer.encoder.conv1.weight.add_(1e-6)
    with pytest.raises(OutputsDifferError, match=r"other weights: \['conv1.weight'\]"):
        training_step.require_same_towers(ours.retrieval_model, peer)


def test_the_data_part_reads_what_the_trainer_waited(tmp_path):
    trainer = make_trainer(tmp_path, 16, max_steps=2, logging_steps=2)
    found = training_data.measure_wait(trainer, CPU)
    assert 0 < found["value"] < 1
    assert found["steps"] == 2
    assert found["met"] or "collator.py" in found["profile"]


def test_the_demo_recipe_is_measured_as_it_stands(tmp_path):
    trainer = training_data.demo_trainer(tmp_path, CPU, num_steps=5)
    assert trainer.args.max_steps == trainer.args.logging_steps == 5
    assert trainer.args.train_batch_size == 256
    assert trainer.args.enable_hard_neg


def test_the_mining_part_times_one_search_and_counts_its_products(work):
    found = training.QUICK["mining"](CPU, work)
    ours, peer = (found["rows"][name] for name in (training_mining.OURS, training_mining.PEER))
    assert ours["flops"] == peer["flops"] == 2 * 600 * 3_000 * 128
    assert found["value"] == ours["median_seconds"] == ours["seconds"][0]
    assert found["met"]
    assert found["device"] == f"{training_mining.CPU_THREADS} CPU threads"
    assert "s | < 300 s | met |" in report({"quick": True, "mining": {"cpu": found}})


def test_a_mining_that_finds_other_terms_is_not_timed(monkeypatch):
    bank = training_mining.Bank.draw(50, 200, 128, CPU)
    assert training_mining.scores_difference(bank, 5) <= training_mining.TOLERANCE
    plain = training_mining.nearest_wrong_terms
    for spoil in (lambda table_CK: table_CK * 0, lambda table_CK: table_CK * 0 + training_mining.NO_TERM):
        monkeypatch.setattr(training_mining, "nearest_wrong_terms", lambda *args, spoil=spoil: spoil(plain(*args)))
        with pytest.raises(OutputsDifferError, match="scores of mined terms"):
            training_mining.scores_difference(bank, 5)


def test_the_gpu_part_reads_utilisation_off_whole_steps(work):
    found = training.QUICK["gpu"](CPU, work)
    assert found["value"] == pytest.approx(found["floor_seconds"] / found["step_seconds"], rel=0.1)
    assert not found["activation_checkpointing"]
    assert found["met"] or "aten::" in found["profile"]


def test_outputs_that_are_not_finite_or_of_another_shape_are_not_equal():
    ones = torch.ones(2, 3)
    assert largest_difference(ones, ones + 1e-7, 1e-6, "ones") > 0
    for other in (ones * math.nan, torch.ones(3, 2)):
        with pytest.raises(OutputsDifferError, match="ones"):
            largest_difference(ones, other, 1.0, "ones")


def test_rows_take_turns_and_their_first_run_is_not_counted():
    turns = []
    rows = {"a": Row("first"), "b": Row("second", beside="a")}
    take_turns(rows, {name: lambda name=name: turns.append(name) for name in rows}, 2, CPU)
    assert turns == ["a", "b"] * 3
    assert [len(row.seconds) for row in rows.values()] == [2, 2]


def test_only_a_missed_target_is_profiled():
    rows = {"ours": Row("fast", seconds=[1.0], flops=10), "peer": Row("slow", beside="ours", seconds=[4.0, 2.0, 3.0])}
    settings = {"ours": "ours", "against": "peer", "device": CPU, "dtype": torch.float32}
    met = comparison(rows, at_least=3.0, profiled=lambda: None, **settings)
    missed = comparison(rows, at_least=3.1, profiled=lambda: torch.ones(8) @ torch.ones(8), **settings)
    assert met["value"] == missed["value"] == 3.0
    assert "profile" not in met
    assert "aten::dot" in missed["profile"]
    assert met["rows"]["ours"]["floor_seconds"] == pytest.approx(10 / met["peak_flops_per_second"])


def test_a_run_keeps_other_parts_and_says_what_no_gpu_ran(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training, "QUICK", {**training.QUICK, "forward": lambda *_: verdict(9.5, at_least=9.0) | ABOUT})
    options = ["--quick", "--work", str(tmp_path)]
    training.main([*options, "--part", "gpu"])
    training.main([*options, "--part", "forward"])
    results = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert results["gpu"] == {"cuda": training.NO_GPU}
    assert results["forward"]["cpu"]["met"]
    assert {"date", "machine", "versions"} <= results.keys()
    assert "| 9.5× | ≥ 9× | met |" in capsys.readouterr().out
    assert "not run: there is no CUDA device" in (tmp_path / "training.md").read_text(encoding="utf-8")


ABOUT = {"device": "2 CPU threads", "judged": "ours, against stock"}


def test_the_report_shows_the_profile_of_a_missed_target():
    found = verdict(0.05, below=0.03) | ABOUT | {"profile": "ncalls tottime", "steps": 45}
    text = report({"quick": False, "data": {"cpu": found}})
    assert "| 5 % | < 3 % | **missed** |" in text
    assert "ncalls tottime" in text


def test_an_unknown_part_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        training.arguments(["--part", "speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err
