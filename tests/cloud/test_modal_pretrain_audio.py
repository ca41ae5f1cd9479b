"""The Modal app of the audio pre-training, without Modal."""

import importlib.util
from pathlib import Path

import modal

from qwen_term_retrieval.cloud.launching import training_command
from qwen_term_retrieval.cloud.modal_runs import recipe_flags
from qwen_term_retrieval.pretraining.audio.arguments import AUDIO_PRETRAINING
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT / "scripts" / "pretrain_audio.py"


def test_the_flags_are_those_of_the_script_that_is_launched():
    spec = importlib.util.spec_from_file_location("under_test", ROOT / "scripts" / "modal_pretrain_audio.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.pretrain, modal.Function)
    command = training_command(
        PRETRAIN, Path("/outputs/run"), num_gpus=0, flags=recipe_flags("nest_large", "/packs/mine")
    )
    model, data, args = parse_recipe(AUDIO_PRETRAINING, RECIPES, command[command.index(str(PRETRAIN)) + 1 :])
    assert (model.size, data.dataset, args.output_dir, args.resume) == ("L", "/packs/mine", "/outputs/run", True)
