"""Search for the settings that work best on your data: optuna tries them, each in a training run of its own.

python scripts/tune.py --trials 20                                       # around the demo recipe
python scripts/tune.py --trials 20 --recipe laptop --dataset packs/mine  # any recipe and flags of scripts/train.py
python scripts/train.py --recipe outputs/laptop-tuning/best.yaml         # train with the best
"""

import argparse
import sys

from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL
from qwen_term_retrieval.training.tuning import tune

if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, description="Search for the best settings.")
    own.add_argument("--trials", type=int, default=20, help="Runs to try, those of a resumed search among them.")
    chosen, flags = own.parse_known_args(sys.argv[1:])
    with one_line_errors():
        model_args, data_args, args = parse_recipe(TERM_RETRIEVAL, RECIPES, flags, own)
        tune(model_args, data_args, args, chosen.trials)
