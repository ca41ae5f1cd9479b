"""Train a speech-to-term retriever.

accelerate launch scripts/train.py                    # the demo recipe: CPU, minutes
accelerate launch scripts/train.py --recipe laptop    # any recipe of configs/recipes, or a YAML file
python scripts/train.py --help                        # every setting
"""

from qwen_term_retrieval.distributed import end_ranks
from qwen_term_retrieval.refusals import one_line_errors
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL
from qwen_term_retrieval.training.run import run_training

if __name__ == "__main__":
    with one_line_errors("--resume goes on from the last checkpoint"):
        run_training(*parse_recipe(TERM_RETRIEVAL, RECIPES))
    end_ranks()
