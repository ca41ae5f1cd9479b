"""What the second look is worth on real speech, by who proposes: recall, and what a probability promises.

    python -m benchmarks.real_speech.verifying.second_look --model outputs/mine [--test-set ktuberling] [--spelling]

Clips of at most four words; banks: their own texts, with 10,000 and with 100,000 others. Nothing is fitted here:
verifier and threshold are the model's, of clips that are no test clips. It writes `second_look_SET.{json,md,png}` into
`benchmarks/results`, `second_look_SET_NAME` with `--name`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import table
from benchmarks.real_speech.__main__ import Benchmark, ranks_by_windows
from benchmarks.real_speech.judged_sets import TEST_SETS
from benchmarks.real_speech.term_banks import HARD
from benchmarks.real_speech.verifying.answers import answers_in_banks, index_of, ranks_of
from benchmarks.real_speech.verifying.belief import judge_belief
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.evaluation.ranking import recall_at_k
from qwen_term_retrieval.retrieval.looks.second_look import FIRST_STAGES, SecondLook
from qwen_term_retrieval.retrieval.looks.spelling_look import SpellingLook
from qwen_term_retrieval.retrieval.retriever import TermRetriever


def judge(bench: Benchmark, *, spelling: bool) -> dict[str, Any]:
    """Recall in each bank by each system, and precision at probabilities."""
    short = np.flatnonzero(bench.is_short).tolist()
    clips, gold = [bench.clips[row] for row in short], [bench.gold[row] for row in short]
    banks = {name: rows for name, rows in bench.banks.rows.items() if name != HARD}
    retriever = TermRetriever.from_pretrained(bench.model_folder, verify="sounds", device="cpu")
    terms_ND = retriever.model.encode_terms(bench.banks.terms, batch_size=16_384, show_progress=True)
    audio = retriever.model.encode_audio(clips, show_progress=True)
    found: dict[str, Any] = {"n": len(clips), "banks": {name: len(rows) for name, rows in banks.items()}}
    ranks = {name: ranks_by_windows(audio, terms_ND[torch.from_numpy(rows)], gold) for name, rows in banks.items()}
    found["systems"] = {"windows alone": {"recall": _recall(ranks)}}
    index = index_of(retriever, bench.banks.terms)
    systems: list[tuple[str, str, bool]] = [(f"verified, proposed by {stage}", stage, False) for stage in FIRST_STAGES]
    if spelling:
        systems.append(("verified, proposed by windows, and the decoder", "windows", True))
    for label, stage, with_decoder in systems:
        retriever.second_look = SecondLook(retriever.model, stage)  # type: ignore[arg-type]
        retriever.spelling_look = SpellingLook(retriever.model) if with_decoder else None
        started = time.perf_counter()
        answers = answers_in_banks(retriever, index, banks, clips)
        seconds = time.perf_counter() - started
        found["systems"][label] = {
            "recall": _recall(ranks_of(answers, gold, banks)),
            "seconds for all clips in all banks": round(seconds, 1),
        }
        print(label, found["systems"][label]["recall"], f"{seconds:.0f} s", flush=True)
    retriever.second_look, retriever.spelling_look = SecondLook(retriever.model), None
    found["belief"] = judge_belief(retriever, index, banks, clips, gold)
    return found


def _recall(ranks: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    return {name: {f"R@{k}": round(recall_at_k(np.array(of), k), 4) for k in (1, 10)} for name, of in ranks.items()}


def belief_table(belief: dict[str, Any]) -> str:
    """For each bank: what each threshold promises and keeps."""
    labels = list(next(iter(belief.values())))
    rows = [
        [
            bank,
            *(
                f"{of[label]['promised']:.2f} / {of[label]['precision']:.2f} / {of[label]['recall']:.2f}"
                for label in labels
            ),
        ]
        for bank, of in belief.items()
    ]
    head = "Half of the searches without the clip's own term; promised / kept precision / recall by threshold:\n\n"
    return head + table(["terms", *labels], rows)


def draw_before_and_after(path: Path, found: dict[str, Any], name: str) -> None:
    """Recall against bank size: windows alone, verified, and the best transcript search of `real_speech_SET.json`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kept = json.loads((RESULTS / f"real_speech_{name}.json").read_text(encoding="utf-8"))
    before = kept["recall, clips of at most four words"]
    lines = {
        "windows alone": (found["systems"]["windows alone"]["recall"], {"color": "tab:gray", "linewidth": 1.6}),
        "and the second look": (
            found["systems"]["verified, proposed by windows"]["recall"],
            {"color": "tab:blue", "linewidth": 2.6},
        ),
        f"Whisper-base transcript, best search ({kept['date']})": (
            {bank: {k: before["IPA"][bank][k]["value"] for k in ("R@1", "R@10")} for bank in found["banks"]},
            {"color": "tab:orange", "linewidth": 1.4, "linestyle": "--"},
        ),
    }
    sizes = list(found["banks"].values())
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for k, panel in zip(("R@1", "R@10"), panels, strict=True):
        for label, (recall, style) in lines.items():
            panel.plot(sizes, [recall[bank][k] for bank in found["banks"]], marker="o", label=label, **style)
        panel.set(xscale="log", xlabel="terms in the bank", title=k.replace("R@", "Recall@"), ylim=(None, 1.01))
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of clips")
    panels[0].legend(loc="lower left", fontsize=8)
    figure.suptitle(f"Real speech, {found['speakers']}, n = {found['n']}, at most four words", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with a verifier")
    parser.add_argument("--test-set", choices=TEST_SETS, action="append", help="default: all")
    parser.add_argument("--name", help="of the model, in the names of the results: of another than the default one")
    parser.add_argument("--spelling", action="store_true", help="ask the decoder too: far slower")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.test_set or TEST_SETS:
        test_set = TEST_SETS[name]
        bench = Benchmark(
            work=Path("outputs/real_speech") / name,
            model_folder=options.model,
            training_corpus=Path("packs/laptop"),
            test_set=test_set,
        )
        found = judge(bench, spelling=options.spelling)
        found |= {"test_set": name, "speakers": test_set.speakers, "threads": options.threads}
        path = RESULTS / f"second_look_{'_'.join(filter(None, (name, options.name)))}.json"
        write_results(path, found, packages=("torch", "transformers", "numpy"))
        rows = [
            [label, *(" / ".join(f"{each:.3f}" for each in row.values()) for row in system["recall"].values())]
            for label, system in found["systems"].items()
        ]
        head = f"**{name}: {test_set.speakers}, n = {found['n']}**, R@1 / R@10\n\n"
        text = head + table(["system", *found["banks"]], rows) + "\n" + belief_table(found["belief"]) + "\n"
        draw_before_and_after(path.with_suffix(".png"), found, name)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
