"""Recall@k as a metric of the `evaluate` library.

It is a script by itself, loaded by its path:

    metric = evaluate.load("qwen_term_retrieval/evaluation/recall_metric.py")
    metric.compute(predictions=[["aorta", "vein"]], references=[["vein"]], k=[1, 2])
    # {"recall@1": 0.0, "recall@2": 1.0, "mrr": 0.5}
"""

import datasets
import evaluate

_DESCRIPTION = """Recall@k and MRR over pairs of a clip and a term said in it. A term's rank is its place among the
predictions, the clip's other terms left out; terms that are not predicted count as missed."""

_INPUTS = """
Args:
    predictions: for each clip the terms found, best first.
    references: for each clip the terms said; clips without one are left out.
    k: one number or several.
Returns:
    `recall@k` for each k, and `mrr`.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RecallAtK(evaluate.Metric):
    """`evaluate.load` finds this class."""

    def _info(self):
        strings = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": strings, "references": strings}),
        )

    def _compute(self, predictions, references, k=(1, 5, 10)):
        ranks = [rank for found, said in zip(predictions, references, strict=True) for rank in _ranks(found, said)]
        if not ranks:
            raise ValueError("no clip has a reference term: there is nothing to recall")
        recalls = {
            f"recall@{one}": sum(rank <= one for rank in ranks) / len(ranks)
            for one in ([k] if isinstance(k, int) else k)
        }
        return recalls | {"mrr": sum(1 / rank for rank in ranks) / len(ranks)}


def _ranks(found, said):
    """Rank of each term said; infinity for those not found."""
    wrong_before: dict[str, int] = {}
    num_wrong = 0
    for term in found:
        wrong_before.setdefault(term, num_wrong)
        num_wrong += term not in said
    return [wrong_before[term] + 1 if term in wrong_before else float("inf") for term in dict.fromkeys(said)]
