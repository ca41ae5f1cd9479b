"""Pre-train an audio encoder on rented GPUs: `scripts/pretrain_audio.py` in a Modal container.

    modal run scripts/modal_pretrain_audio.py                                             # the demo recipe on one A100
    modal run --detach scripts/modal_pretrain_audio.py --recipe nest_large --num-gpus 8 --pack packs/speech
    modal run scripts/modal_pretrain_audio.py --run-name first --resume                   # go on, or fetch what is done

The pack is uploaded once. Checkpoints are committed to a Volume while the run goes on; a container that Modal takes
away is started again and goes on from the last whole checkpoint. What is needed once stands in
`scripts/modal_train.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from qwen_term_retrieval.cloud.modal_containers import GPU, container, train_in_container
from qwen_term_retrieval.cloud.modal_runs import pack_or_dataset, start_run

REPOSITORY = Path(__file__).resolve().parent.parent

app = modal.App("qwen-term-retrieval-pretrain-audio")


@app.function(**container(REPOSITORY))
def pretrain(run_name: str, num_gpus: int, flags: list[str]) -> dict[str, Any]:
    return train_in_container("pretrain_audio.py", run_name, num_gpus, flags)


@app.local_entrypoint()
def main(
    recipe: str = "nest_demo",
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

    Flags: `--recipe` as of scripts/pretrain_audio.py; `--flags` any more flags of it, in quotes; the others as of
    scripts/modal_train.py. Noise that `--augmentation` names must lie on the Hub or on the Volume of packs.
    """
    start_run(
        pretrain, REPOSITORY, recipe, run_name, pack_or_dataset(pack, dataset), flags=flags, resume=resume,
        push_to_hub=push_to_hub, hub_model_id=hub_model_id, hf_secret=hf_secret, gpu=gpu, num_gpus=num_gpus,
        download_to=download_to,
    )  # fmt: skip
