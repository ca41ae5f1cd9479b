from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from qwen_term_retrieval.evaluation import evaluator, long_clips
from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.evaluation.ranked_pairs import evaluate_vectors, rank_pairs
from qwen_term_retrieval.evaluation.report import plot_recall, recall_table, threshold_line
from qwen_term_retrieval.retrieval.retriever import TermRetriever

SECOND = np.zeros(16_000, np.int16)


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


BANK = unit([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0])
IDS = [10, 20, 30, 40]


def test_recall_counts_pairs_and_the_other_terms_of_a_clip_do_not_stand_in_the_way():
    clips = unit([1.0, 0.9, 0.1], [0.1, 0.2, 1.0])
    metrics = evaluate_vectors(clips, [[10, 20], [30]], BANK, IDS, ks=(1, 2))
    # In clip 0 only term 40 stands before its two terms.
    assert metrics["pairs"] == 3
    assert metrics["recall@1"] == pytest.approx(1 / 3)
    assert metrics["recall@2"] == 1.0
    assert metrics["mrr"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_neutral_terms_are_neither_right_nor_wrong():
    clips = unit([1.0, 0.9, 0.1])
    pairs = rank_pairs(clips, [[10]], BANK, IDS, neutral=[[40, 999]])
    assert pairs.ranks.tolist() == [1]
    assert rank_pairs(clips, [[10]], BANK, IDS).ranks.tolist() == [2]


def test_the_best_spelling_of_a_term_counts_and_its_aliases_are_never_wrong():
    bank = unit([1, 0, 0], [0.9, 0.3, 0], [0, 1, 0])
    pairs = rank_pairs(unit([0.9, 0.35, 0]), [[10]], bank, [10, 10, 20])
    assert pairs.ranks.tolist() == [1]


def test_a_clip_scores_by_its_best_real_window():
    clips = torch.stack([unit([0, 0, 1], [0, 1, 0], [1, 0, 0])])
    mask = torch.tensor([[True, True, False]])
    assert rank_pairs(clips, [[20]], BANK, IDS, window_mask=mask).ranks.tolist() == [2]  # ties count against us
    assert rank_pairs(clips, [[10]], BANK, IDS, window_mask=mask).ranks.tolist() == [4]


def test_seen_and_unseen_terms_are_reported_apart_with_intervals():
    clips = unit([1, 0, 0], [0, 1, 0], [1, 0, 0.9], [0, 0, 1])
    metrics = evaluate_vectors(clips, [[10], [20], [30], [30]], BANK, IDS, seen_ids={10, 20}, ks=(1,))
    assert (metrics["pairs_seen"], metrics["recall@1_seen"]) == (2, 1.0)
    assert (metrics["pairs_unseen"], metrics["recall@1_unseen"]) == (2, 0.5)
    assert metrics["recall@1_low"] <= metrics["recall@1"] <= metrics["recall@1_high"]
    assert metrics["recall@1_low"] < metrics["recall@1_high"]


def test_numbers_do_not_depend_on_the_order_in_which_ranks_gathered_the_clips():
    generator = torch.Generator().manual_seed(0)
    clips = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator), dim=-1)
    bank = torch.nn.functional.normalize(torch.randn(200, 8, generator=generator), dim=-1)
    gold = [[i, 199 - i] for i in range(50)]
    order = torch.randperm(50, generator=generator).tolist()
    one = evaluate_vectors(clips, gold, bank, list(range(200)), seen_ids=range(100), intervals=False)
    other = evaluate_vectors(
        clips[order], [gold[i] for i in order], bank, list(range(200)), range(100), intervals=False
    )
    assert one == pytest.approx(other, abs=1e-12)


def test_clips_without_terms_are_left_out_and_a_set_without_terms_has_no_recall():
    assert evaluate_vectors(unit([1, 0, 0], [0, 1, 0]), [[], [20]], BANK, IDS)["pairs"] == 1
    assert evaluate_vectors(unit([1, 0, 0]), [[]], BANK, IDS) == {"pairs": 0}


@pytest.mark.parametrize(
    ("gold", "ids", "message"),
    [
        ([[50]], IDS, "clip 0: its term 50 is not in the bank"),
        ([[10]], IDS[:2], "must be one for each"),
        ([], IDS, "0 lists"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(gold, ids, message):
    with pytest.raises(ValueError, match=message):
        rank_pairs(unit([1, 0, 0]), gold, BANK, ids)


@pytest.fixture(scope="module")
def rows(say):
    def row(pcm, text, terms, starts=None, ends=None):
        spans = {"term_starts": starts or [None] * len(terms), "term_ends": ends or [None] * len(terms)}
        return {"audio": (pcm, 16_000), "text": text, "terms": terms, "duration": len(pcm) / 16_000, **spans}

    def placed(term):
        pcm = say(term, speed=1.05)
        return row(np.concatenate([SECOND, pcm, SECOND]) + 3, f"so {term}", [term], [1.0], [1.0 + len(pcm) / 16_000])

    terms = ["pneumonia", "kubernetes", "linear algebra"]
    return [
        *(placed(term) for term in terms),
        row(say("helicopter", speed=1.05), "helicopter", ["Helicopter"]),
        row(SECOND, "", ["penicillin"]),  # silent: it cannot be found
        row(np.concatenate([SECOND + 3] * 4), "", []),
        row(say("saxophone"), "saxophone", []),
    ]


def test_a_model_is_evaluated_the_way_it_is_searched(listening_model, rows):
    evaluator = RetrievalEvaluator(
        rows,
        distractors=["photosynthesis", "Kubernetes"],
        seen_terms=["pneumonia", "helicopter", "photosynthesis"],
        threshold=0.7,
    )
    metrics = evaluator(listening_model)
    assert metrics["bank"] == 6  # five terms and one distractor: "Kubernetes" is none
    assert (metrics["clips"], metrics["pairs"], metrics["pairs_seen"]) == (7, 5, 2)
    assert metrics["recall@1"] == pytest.approx(4 / 5)
    assert metrics["recall@1_seen"] == 1.0
    assert metrics["span_iou"] > 0.7
    assert metrics["span_error"] < 0.2
    assert metrics["recall"] == pytest.approx(4 / 5)
    assert metrics["precision"] > 0.75
    assert metrics["false_alarms_per_minute"] == 0.0


def test_long_clips_are_scored_as_they_are_read_to_the_same_numbers(listening_model, rows, monkeypatch):
    retriever = TermRetriever(listening_model, verify="none")
    together = RetrievalEvaluator(rows, distractors=["helicopter", "penicillin"], bank_sizes=[1])
    expected = together.run(retriever, show_progress=False)
    # All, some and none of them are long.
    for seconds in (0.0, sorted(row["duration"] for row in rows)[len(rows) // 2]):
        monkeypatch.setattr(long_clips, "LONG_SECONDS", seconds)
        monkeypatch.setattr(evaluator, "LONG_SECONDS", seconds)
        found = together.run(retriever, show_progress=False)
        assert found.metrics == pytest.approx(expected.metrics, abs=1e-4)
        assert found.pairs.ranks.tolist() == expected.pairs.ranks.tolist()
        assert [[m.term for m in own] for own in found.matches] == [[m.term for m in own] for own in expected.matches]


def test_words_of_the_text_are_no_false_alarms_and_others_are(listening_model, rows):
    no_term = [rows[-1]]
    alarms = RetrievalEvaluator(no_term, ["penicillin"], distractors=["saxophone"], threshold=-1.0, top_k=2)(
        listening_model
    )
    assert alarms["false_alarms_per_minute"] == pytest.approx(60 / rows[-1]["duration"])  # penicillin alone
    unlisted = [{**rows[-1], "text": ""}]
    alarms = RetrievalEvaluator(unlisted, ["penicillin"], distractors=["saxophone"], threshold=0.7)(listening_model)
    assert alarms["precision"] == 0.0
    assert alarms["false_alarms_per_minute"] == pytest.approx(60 / rows[-1]["duration"])


def test_without_a_threshold_nothing_is_said_about_one(listening_model, rows):
    metrics = RetrievalEvaluator(rows[:2])(TermRetriever(listening_model, windows="clip"))
    assert "threshold" not in metrics
    assert threshold_line(metrics) == ""


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no clip"):
        RetrievalEvaluator([])


def test_the_table_and_the_picture_show_every_group(tmp_path):
    metrics = {
        f"test_{name}": value
        for name, value in {
            "recall@1": 0.5, "recall@10": 0.75, "mrr": 0.6, "pairs": 8, "recall@10_low": 0.4, "recall@10_high": 0.9,
            "recall@1_unseen": 0.25, "recall@10_unseen": 0.5, "mrr_unseen": 0.3, "pairs_unseen": 4, "pairs_seen": 0,
            "threshold": 0.5, "precision": 0.9, "recall": 0.8, "f1": 0.85,
        }.items()
    }  # fmt: skip
    assert recall_table(metrics, "test").splitlines() == [
        "| terms   |   pairs |   R@1 |   R@10 |   MRR |",
        "|---------|---------|-------|--------|-------|",
        "| all     |       8 | 0.500 |  0.750 | 0.600 |",
        "| unseen  |       4 | 0.250 |  0.500 | 0.300 |",
    ]
    assert threshold_line(metrics, "test") == "at threshold 0.500: precision 0.900, recall 0.800, F1 0.850"
    picture = plot_recall(metrics, tmp_path / "plots" / "recall.png", prefix="test", title="test")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="recall@k"):
        plot_recall({"loss": 1.0}, tmp_path / "none.png")


def test_the_metric_of_the_evaluate_library_agrees_with_ours():
    metric = evaluate.load(str(Path(evaluator.__file__).with_name("recall_metric.py")))
    scores = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    gold = [[i % 12] if i % 3 else [i % 12, (i + 5) % 12] for i in range(30)]
    bank = torch.eye(12)
    ours = evaluate_vectors(scores, gold, bank, list(range(12)), intervals=False)
    found = [[str(term) for term in row.argsort(descending=True).tolist()] for row in scores]
    theirs = metric.compute(
        predictions=found, references=[[str(term) for term in terms] for terms in gold], k=[1, 5, 10]
    )
    assert theirs == pytest.approx({name: ours[name] for name in theirs})
    assert metric.compute(predictions=[["a", "b"]], references=[["b", "c"]], k=1) == {"recall@1": 0.0, "mrr": 0.25}
    with pytest.raises(ValueError, match="nothing to recall"):
        metric.compute(predictions=[["a"]], references=[[]])
