"""Pre-train an audio encoder on speech without labels, by denoising masked tokens (NEST).

accelerate launch scripts/pretrain_audio.py                               # the recipe nest_demo: CPU, minutes
accelerate launch --config_file configs/accelerate/eight_gpus.yaml scripts/pretrain_audio.py --recipe nest_large \
    --dataset packs/speech --augmentation '{"noise": "packs/noise"}'
python scripts/pretrain_audio.py --model nest.nemo --dataset recordings/  # go on from a checkpoint of NeMo's
python scripts/pretrain_audio.py --help                                   # every setting
"""

import argparse

from qwen_term_retrieval.distributed import end_ranks
from qwen_term_retrieval.pretraining.audio.arguments import AUDIO_PRETRAINING
from qwen_term_retrieval.pretraining.audio.run import run_audio_pretraining
from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe

if __name__ == "__main__":
    with one_line_errors():
        script = argparse.ArgumentParser(description="Pre-train an audio encoder on speech.", add_help=False)
        run_audio_pretraining(*parse_recipe(AUDIO_PRETRAINING, RECIPES, None, script, default="nest_demo"))
    end_ranks()
