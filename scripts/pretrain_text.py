"""Pre-train a text model on pairs of prompt and response.

python scripts/prepare_text.py                                # WordNet's glosses into data/text_demo
accelerate launch scripts/pretrain_text.py                    # the recipe text_demo: CPU, minutes
accelerate launch --config_file configs/accelerate/three_gpus.yaml scripts/pretrain_text.py --recipe text_10m \
    --dataset data/mine --is_keep_training=True
python scripts/pretrain_text.py --help                        # every setting
"""

import argparse
import sys

from qwen_term_retrieval.distributed import end_ranks
from qwen_term_retrieval.pretraining.text.arguments import TEXT_PRETRAINING, own_names
from qwen_term_retrieval.pretraining.text.run import run_text_pretraining
from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe

if __name__ == "__main__":
    with one_line_errors("--resume goes on from the last checkpoint"):
        script = argparse.ArgumentParser(description="Pre-train a text model on prompts and responses.", add_help=False)
        run_text_pretraining(
            *parse_recipe(TEXT_PRETRAINING, RECIPES, own_names(sys.argv[1:]), script, default="text_demo")
        )
    end_ranks()
