"""Train a speech-to-term retriever.

accelerate launch scripts/train.py                    # the demo recipe: CPU, minutes
accelerate launch scripts/train.py --recipe laptop    # any recipe of configs/recipes, or a YAML file
python scripts/train.py --help                        # every setting
"""

import sys
from pathlib import Path

from qwen_term_retrieval.training.arguments import parse_recipe
from qwen_term_retrieval.training.hub import HubPushError
from qwen_term_retrieval.training.run import run_training

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipes"

if __name__ == "__main__":
    try:
        settings = parse_recipe(RECIPES)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    try:
        run_training(*settings)
    except (FileNotFoundError, FileExistsError, HubPushError) as error:
        sys.exit(f"error: {error}")
