"""Hard negatives of a few clips, mined in one process or, by torchrun, in several.

torchrun --nproc_per_node 2 tests/processes/mining.py OUTPUT_DIR

Each rank leaves `<rank>.npz` in the folder: the table of each case, `vectors` of the terms, and of an evaluation `mrr`
and `embedded`, how many terms it embedded.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
import torch.distributed as dist

import qwen_term_retrieval  # noqa: F401  registers the feature and the builder
from qwen_term_retrieval.distributed import end_ranks
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.data.audio_source import PcmFrames
from qwen_term_retrieval.training.data.clips import TrainingClips, annotate_terms, spoken_terms
from qwen_term_retrieval.training.data.texts import encode_by_all_ranks
from qwen_term_retrieval.training.negatives.mining import mine_hard_negatives
from qwen_term_retrieval.training.recall import evaluate_recall
from tests.doubles.tiny_trainer import tiny_model

ROOT = Path(__file__).parents[2]
# Clips with a term, and clips without: two ranks share the first case, and one has nothing to do in the second.
CASES = {"shared": (12, 4), "lonely": (1, 3)}
NUM_NEGATIVES = 4


def windowed_model():
    return tiny_model(windows={"sizes": [20, 40], "stride": 10}).eval()


def some_rows(with_terms, without=0):
    """Clips of the demo corpus, with and without a term by turns while both last.

    A second label is added to every fourth, and the spans of every third are forgotten.
    """
    rows = datasets.load_dataset(str(ROOT / "builders/term_audio"))["train"]
    silent = np.array([not terms for terms in rows["terms"]])
    order = np.flatnonzero(~silent)[:with_terms].tolist()
    for place, clip in enumerate(np.flatnonzero(silent)[:without].tolist()):
        order.insert(2 * place + 1, clip)
    return rows.select(order).map(_relabel, with_indices=True)


def _relabel(row, index):
    if row["terms"] and index % 4 == 2:
        labels = {"terms": [*row["terms"], "beta blocker"], "term_starts": [*row["term_starts"], row["duration"] / 2]}
        row = row | labels | {"term_ends": [*row["term_ends"], row["duration"]]}
    if index % 3 == 0:
        row = row | {"term_starts": [None] * len(row["terms"]), "term_ends": [None] * len(row["terms"])}
    return {name: row[name] for name in ("terms", "term_starts", "term_ends")}


def prepare(rows, glossary=None):
    """Clips, how their audio is loaded, and a glossary of several batches to embed."""
    if glossary is None:
        made_up = (
            f"{first}{second}{'r' * (size % 7)} {size}"
            for size, first in enumerate("klmnp" * 20)
            for second in "aeiouy"
        )
        glossary = Glossary([*spoken_terms(rows), *made_up])
    clips = TrainingClips(annotate_terms(rows, glossary))
    return clips, PcmFrames(ClipReader(clips.rows), windowed_model().audio_tower.num_frames), glossary


def mine(case, **settings):
    clips, load_audio, glossary = prepare(some_rows(*CASES[case]))
    return mine_hard_negatives(windowed_model(), clips, load_audio, glossary, NUM_NEGATIVES, **settings)


def encode():
    return encode_by_all_ranks(windowed_model(), prepare(some_rows(*CASES["shared"]))[2])


def evaluate():
    """Recall of the shared clips by an untrained model, and how many terms this rank embedded for it."""
    clips, load_audio, glossary = prepare(some_rows(*CASES["shared"]))
    model = windowed_model()
    encode, embedded = model.encode_terms, []

    def encode_terms(texts, **settings):
        embedded.extend(texts)
        return encode(texts, **settings)

    model.encode_terms = encode_terms
    metrics = evaluate_recall(model, clips, load_audio, glossary, trained_ids=set(), batch_size=4)
    return metrics["mrr"], len(embedded)


def main(output_dir):
    datasets.disable_caching()  # no rank may read what another is still writing
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {case: mine(case, batch_size=4) for case in CASES} | {"vectors": encode().numpy()}
    found["mrr"], found["embedded"] = evaluate()
    np.savez(Path(output_dir, f"{dist.get_rank()}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
