import json

import pytest

from benchmarks.text_pretraining import __main__ as benchmark
from tests.doubles.text_pairs import prepared


def test_it_runs_at_a_tiny_size_and_keeps_what_it_found(tmp_path, monkeypatch, capsys):
    data = prepared(tmp_path / "data", 1200)
    argv = ["benchmark", "--quick", "--only", "opening,padding,loader,step,gpu", "--data", str(data)]
    monkeypatch.setattr("sys.argv", [*argv, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    benchmark.main()
    found = json.loads((tmp_path / "text_pretraining.json").read_text())
    assert set(found["loader"]["real_tokens_per_s"]) == {"datasets + DataCollatorForSeq2Seq", "PairBatches"}
    assert found["padding"]["bucketed pools"] < found["padding"]["random batches"] < found["padding"]["fixed 192 + 192"]
    assert found["opening"]["10000"]["batches_passed_over"] == 52
    assert found["step"]["ratio"] == pytest.approx(
        found["step"]["real_tokens_per_s"]["TextPretrainingTrainer"]
        / found["step"]["real_tokens_per_s"]["transformers.Trainer, random batches"]
    )
    assert "## loader" in capsys.readouterr().out
