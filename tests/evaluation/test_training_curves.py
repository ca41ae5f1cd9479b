import pytest

from qwen_term_retrieval.evaluation.training_curves import _points, draw_training_curves

RUN = [
    {"step": 2, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 2, "eval_recall@1": 0.1, "eval_recall@10": 0.5, "eval_recall@10_unseen": 0.25, "eval_mrr": 0.3},
    {"step": 4, "loss": 0.5, "learning_rate": 5e-4},
    {"step": 4, "eval_recall@1": 0.2, "eval_recall@10": 0.75, "eval_recall@10_unseen": 0.5, "eval_mrr": 0.4},
]


def test_the_picture_of_a_run_is_a_png_that_depends_on_its_numbers(tmp_path):
    draw_training_curves(RUN, tmp_path / "run.png", best_step=4)
    whole = (tmp_path / "run.png").read_bytes()
    assert whole.startswith(b"\x89PNG")
    draw_training_curves(RUN[:2], tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes() != whole
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]


def test_a_history_without_losses_or_with_a_loss_of_zero_is_drawn(tmp_path):
    draw_training_curves([line for line in RUN if "loss" not in line], tmp_path / "evaluations.png")
    draw_training_curves([{"step": 1, "loss": 0.0}, *RUN], tmp_path / "zero.png")
    assert (tmp_path / "evaluations.png").stat().st_size > 10_000
    assert (tmp_path / "zero.png").stat().st_size > 10_000


def test_the_best_checkpoint_evaluated_again_at_the_end_is_no_point_of_the_curve():
    assert _points([*RUN, {"step": 4, "eval_mrr": 0.9}], "eval_mrr") == ([2, 4], [0.3, 0.4])


def test_a_history_without_recall_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no test_recall@k in a history of 4 lines"):
        draw_training_curves(RUN, tmp_path / "run.png", prefix="test")
    assert not list(tmp_path.iterdir())
