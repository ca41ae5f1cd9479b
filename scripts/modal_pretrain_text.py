"""Pre-train a text model on rented GPUs: `scripts/pretrain_text.py` in a Modal container.

    modal run scripts/modal_pretrain_text.py --data data/text_demo
    modal run --detach scripts/modal_pretrain_text.py --recipe text_10m --data data/mine --num-gpus 3
    modal run scripts/modal_pretrain_text.py --run-name first --data data/mine --resume   # go on, or fetch what is done

The prepared folder is uploaded once. Checkpoints are committed to a Volume while the run goes on; a container that
Modal takes away is started again and goes on from the last whole checkpoint. What is needed once stands in
`scripts/modal_train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from qwen_term_retrieval.cloud.modal_containers import GPU, PACKS, container, packs, train_in_container
from qwen_term_retrieval.cloud.modal_runs import start_run, upload_folder

REPOSITORY = Path(__file__).resolve().parent.parent

app = modal.App("qwen-term-retrieval-pretrain-text")


@app.function(**container(REPOSITORY))
def pretrain(run_name: str, num_gpus: int, flags: list[str]) -> dict[str, Any]:
    return train_in_container("pretrain_text.py", run_name, num_gpus, flags)


@app.local_entrypoint()
def main(
    data: str,
    recipe: str = "text_demo",
    run_name: str = "",
    gpu: str = GPU,
    num_gpus: int = 1,
    flags: str = "",
    push_to_hub: bool = False,
    hub_model_id: str = "",
    hf_secret: str = "",
    resume: bool = False,
    download_to: str = "outputs/modal",
):
    """Upload a folder of prepared text, train, and download the results.

    Flags: `--data` the folder that scripts/prepare_text.py made; `--recipe` as of scripts/pretrain_text.py; `--flags`
    any more flags of it, in quotes; the others as of scripts/modal_train.py.
    """

    def upload() -> str:
        remedy = "prepare one with `python scripts/prepare_text.py`"
        return f"{PACKS}/{upload_folder(packs, Path(data), 'report.json', remedy)}"

    start_run(
        pretrain, REPOSITORY, recipe, run_name, upload, flags=flags, resume=resume, push_to_hub=push_to_hub,
        hub_model_id=hub_model_id, hf_secret=hf_secret, gpu=gpu, num_gpus=num_gpus, download_to=download_to,
    )  # fmt: skip
