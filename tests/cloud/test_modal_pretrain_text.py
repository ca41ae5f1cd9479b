"""The Modal app of the text pre-training, without Modal."""

import importlib.util
from pathlib import Path

import modal
import pytest

from qwen_term_retrieval.cloud.launching import training_command
from qwen_term_retrieval.cloud.modal_runs import hub_flags, recipe_flags, upload_folder
from qwen_term_retrieval.pretraining.text.arguments import TEXT_PRETRAINING
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT / "scripts" / "pretrain_text.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("under_test", ROOT / "scripts" / "modal_pretrain_text.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flags_are_those_of_the_script_that_is_launched(script):
    assert isinstance(script.pretrain, modal.Function)
    flags = [*recipe_flags("text_10m", "/packs/mine"), *hub_flags(True, "me/model")]
    command = training_command(PRETRAIN, Path("/outputs/run"), num_gpus=0, flags=flags)
    _, data, args = parse_recipe(TEXT_PRETRAINING, RECIPES, command[command.index(str(PRETRAIN)) + 1 :])
    assert (data.dataset, args.output_dir, args.resume) == ("/packs/mine", "/outputs/run", True)
    assert (args.push_to_hub, args.hub_model_id, args.num_train_epochs) == (True, "me/model", 3)


def test_what_is_no_prepared_folder_is_refused_before_anything_is_uploaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no report.json; prepare one"):
        upload_folder(None, tmp_path, "report.json", "prepare one")
