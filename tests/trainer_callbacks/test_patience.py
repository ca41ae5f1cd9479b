"""How long a run goes on, where recall is the same in every evaluation and ranks are not."""

import pytest

from qwen_term_retrieval.trainer_callbacks import RecallReporterCallback
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from tests.doubles.tiny_trainer import make_tiny_trainer


@pytest.mark.parametrize(
    ("ranks", "stopped_after", "best", "stars"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], 5, 5, 5),  # recall says nothing any more, MRR still rises
        ([0.5, 0.6, 0.6, 0.6, 0.9], 4, 2, 2),
        ([0.5, 0.6, 0.5, 0.7, 0.6], 5, 4, 3),
    ],
)
def test_patience_counts_from_the_best_checkpoint(tmp_path, monkeypatch, capsys, ranks, stopped_after, best, stars):
    measured = iter(ranks)

    def evaluate(trainer, *args, **kwargs):
        metrics = {"eval_recall@10": 1.0, "eval_mrr": next(measured)}
        trainer.log(metrics)
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    monkeypatch.setattr(TermRetrievalTrainer, "evaluate", evaluate)
    trainer = make_tiny_trainer(tmp_path, [RecallReporterCallback()], patience=2, num_train_epochs=5)
    trainer.train()
    steps_of_an_epoch = 2
    assert trainer.state.global_step == stopped_after * steps_of_an_epoch
    assert trainer.state.best_global_step == best * steps_of_an_epoch
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best * steps_of_an_epoch}")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("*") for line in lines) == stars


def test_an_evaluation_of_other_data_is_not_counted(tmp_path):
    trainer = make_tiny_trainer(tmp_path, patience=1, num_train_epochs=1)
    for _ in range(2):
        trainer.evaluate(metric_key_prefix="other")
    trainer.train()
    assert trainer.state.global_step == 2
