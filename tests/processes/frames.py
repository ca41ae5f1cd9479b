"""Frames of a frozen tower, computed in one process or, by torchrun, in several.

torchrun --nproc_per_node 2 tests/processes/frames.py OUTPUT_DIR

Each rank leaves `<rank>.json` in the folder: of each of `CASES` what it computed and read, or its error; of a
training run which share of the clips it computed; and what it says of an output folder that only rank 0 sees.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from qwen_term_retrieval.distributed import end_ranks, rank, world_size
from qwen_term_retrieval.models.frame_cache import FrameCache, clip_digests
from qwen_term_retrieval.runs.starting import check_one_output_dir
from qwen_term_retrieval.training.data.frame_sharing import frames_by_all_ranks
from tests.doubles.tiny_trainer import make_tiny_trainer, tiny_model

BATCH_SIZE = 2
# One long clip weighs as much as many short ones.
SECONDS = (4.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2)
# How many of the clips the cache holds when the ranks come; whether each rank has a disk of its own; what rank 1 meets.
CASES = {
    "empty": {},
    "half-full": {"there": 6},
    "own-disks": {"own_disks": True},
    "broken-tower": {"fails": "tower"},
    "broken-clip": {"fails": "digests"},
}
FAILING_RANK = 1


def clips():
    generator = np.random.default_rng(0)
    return [(generator.standard_normal(round(seconds * 16_000)) * 3000).astype(np.int16) for seconds in SECONDS]


def frozen_model():
    model = tiny_model().eval()
    model.train_audio_tower(False)
    return model


def frames(folder, there=0, own_disks=False, fails=None):
    """What this rank computed, and a digest of all frames as it reads them."""
    model, recordings = frozen_model(), clips()
    names = [f"clip {number}" for number in range(len(recordings))]
    folder = folder / str(rank()) if own_disks else folder
    if there and rank() == 0:
        digests = clip_digests(recordings[:there], names)
        cache = FrameCache.open(model, digests, folder)
        batches = cache.missing_batches([length for _, length in digests], BATCH_SIZE)
        cache.compute(model, recordings[:there], batches, names, show_progress=False)
    if world_size() > 1:
        dist.barrier()
    computed, plain = [], model.audio_frames

    def audio_frames(pcm_BS, num_samples_B):
        if fails == "tower" and rank() == FAILING_RANK and computed:
            raise RuntimeError("out of memory")
        computed.extend(num_samples_B.tolist())
        return plain(pcm_BS, num_samples_B)

    def digests():
        if fails == "digests" and rank() == FAILING_RANK:
            raise ValueError("POD/7: holds 0 samples")
        return clip_digests(recordings, names)

    model.audio_frames = audio_frames
    found = {"computed": computed}
    try:
        cache = frames_by_all_ranks(model, recordings, names, digests, folder, batch_size=BATCH_SIZE)
        features, num_frames = cache.get(range(len(recordings)))
        found["frames"] = hashlib.sha256(features.numpy().tobytes()).hexdigest()
        found["num_frames"] = num_frames.tolist()
    except (RuntimeError, ValueError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def main(output_dir):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    output_dir = Path(output_dir)
    found = {name: frames(output_dir / name, **settings) for name, settings in CASES.items()}
    trainer = make_tiny_trainer(
        output_dir / "run", frame_cache_dir=str(output_dir / "features"), per_device_train_batch_size=4,
        frozen=True, num_clips=64, max_steps=1, eval_strategy="no", save_strategy="no",
    )  # fmt: skip
    trainer.train()
    try:
        check_one_output_dir(trainer.args, None if rank() else str(output_dir / "run" / "checkpoint-2"))
    except FileNotFoundError as error:
        found["output_dir"] = str(error)
    cache = trainer.train_clips.frame_cache
    found["run"] = {"computed": cache.num_computed, "clips": len(cache)}
    (output_dir / f"{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
