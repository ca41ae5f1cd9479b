"""Train on rented GPUs: `scripts/train.py` in a Modal container, with packs and checkpoints on Volumes.

    modal run scripts/modal_train.py                                          # the demo recipe on one A100
    modal run --detach scripts/modal_train.py --recipe qwen2_audio --num-gpus 8 --pack packs/mine
    modal run scripts/modal_train.py --run-name first --resume                # go on, or fetch what is done
    modal run scripts/modal_train.py --run-name first --flags=--overwrite     # start anew

The pack is uploaded once. Checkpoints are committed to a Volume while the run goes on; a container that Modal takes
away is started again and goes on from the last whole checkpoint. The results are downloaded at the end. Once:
`pip install 'qwen_term_retrieval[modal]'`, `modal setup` and, to push to the Hub or to read private repositories,
`modal secret create huggingface-secret HF_TOKEN=hf_…`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from qwen_term_retrieval.cloud.modal_containers import GPU, container, train_in_container
from qwen_term_retrieval.cloud.modal_runs import pack_or_dataset, start_run

REPOSITORY = Path(__file__).resolve().parent.parent

app = modal.App("qwen-term-retrieval-train")


@app.function(**container(REPOSITORY))
def train(run_name: str, num_gpus: int, flags: list[str]) -> dict[str, Any]:
    return train_in_container("train.py", run_name, num_gpus, flags)


@app.local_entrypoint()
def main(
    recipe: str = "demo",
    run_name: str = "",
    pack: str = "",
    dataset: str = "",
    gpu: str = GPU,
    num_gpus: int = 1,
    flags: str = "",
    push_to_hub: bool = False,
    hub_model_id: str = "",
    hf_secret: str = "",
    resume: bool = False,
    download_to: str = "outputs/modal",
):
    """Upload a pack if one is given, train, and download the results.

    Flags: `--recipe` as of scripts/train.py; `--pack` a local pack folder, or `--dataset` a Hub id; `--flags` any more
    flags of scripts/train.py, in quotes; `--hf-secret` the Modal secret with HF_TOKEN (default huggingface-secret with
    `--push-to-hub`); `--resume` to go on with an earlier run of that name; `--download-to ''` to download nothing.
    """
    start_run(
        train, REPOSITORY, recipe, run_name, pack_or_dataset(pack, dataset), flags=flags, resume=resume,
        push_to_hub=push_to_hub, hub_model_id=hub_model_id, hf_secret=hf_secret, gpu=gpu, num_gpus=num_gpus,
        download_to=download_to,
    )  # fmt: skip
