"""What a run leaves on the Hub: whole models under tags, found again by `qtr models`; and what a broken Hub costs.

Runs and clients are processes of their own, because the Hub's address is read on import.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pytest

from qwen_term_retrieval.models.model_card import read_card
from tests.doubles.local_hub import LocalHub
from tests.processes.launching import ROOT

MODEL = {"README.md", "config.json", "model.safetensors"}
CHECKPOINT = MODEL | {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_data.json"}


def run_python(hub, home, script, *arguments, **environment):
    """Run a script in a process that uses `hub`, and return what it prints last, as JSON."""
    variables = hub.environment(home) | {
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, env=variables | environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Three runs: one pushes resumable checkpoints, as it trains and once more resumed; one pushes the end alone."""
    home = tmp_path_factory.mktemp("home")
    script = """
        import json, sys
        from pathlib import Path
        from tests.doubles.tiny_trainer import make_tiny_trainer

        home = Path(sys.argv[1])
        pushing = {"push_to_hub": True, "hub_always_push": True, "hub_token": "hf_secret"}
        terms = pushing | {"hub_model_id": "me/terms", "hub_strategy": "checkpoint", "enable_hard_neg": True}
        trainer = make_tiny_trainer(home / "terms", frame_cache_dir=str(home / "terms/frames"), **terms)
        trainer.train()
        trainer.push_to_hub()
        checkpoints = sorted(path.name for path in (home / "terms").glob("checkpoint-*"))
        trainer = make_tiny_trainer(home / "terms", num_train_epochs=4, **terms)
        trainer.train(resume_from_checkpoint=str(home / "terms" / checkpoints[0]))
        trainer.push_to_hub()
        trainer = make_tiny_trainer(home / "end", hub_model_id="me/end", hub_strategy="end", **pushing)
        trainer.train()
        trainer.push_to_hub()
        print(json.dumps({"resumed": checkpoints[0], "best": trainer.state.best_global_step}))
    """
    with LocalHub() as hub:
        hub.facts = run_python(hub, home, script, home)
        yield hub, home


@pytest.mark.slow
def test_at_every_commit_the_root_is_a_whole_model_with_the_card_of_its_weights(published):
    hub, _ = published
    for commit in hub.commits["me/terms"]:
        assert {name for name in commit.files if "/" not in name} == MODEL
        card = commit.files["README.md"].decode()
        assert "Sixteen clips." in card
        assert 'TermRetriever.from_pretrained("me/terms")' in card
        assert "qtr search me/terms" in card
        assert read_card(card).recall.keys() == {"recall@1", "recall@5", "recall@10"}
    first, second = hub.commits["me/terms"][:2]
    assert [first.title, second.title] == ["Step 2, epoch 1.00", "Step 4, epoch 2.00"]
    assert [read_card(each.files["README.md"].decode()).step for each in (first, second)] == [2, 4]
    assert first.files["model.safetensors"] != second.files["model.safetensors"]


@pytest.mark.slow
def test_a_checkpoint_to_resume_from_comes_with_its_model_and_nothing_else_does(published):
    hub, home = published
    files = hub.files("me/terms", "step-2")
    assert files.keys() == MODEL | {f"last-checkpoint/{name}" for name in CHECKPOINT}
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 2
    assert (home / "terms" / "hard_negatives").is_dir()
    assert not any(b"hf_secret" in content for commit in hub.commits["me/terms"] for content in commit.files.values())
    assert not (home / "terms" / ".push").exists() or not any((home / "terms" / ".push").iterdir())


@pytest.mark.slow
def test_a_run_that_pushes_its_end_makes_one_commit_that_is_final_and_best(published):
    hub, _ = published
    (commit,) = hub.commits["me/end"]
    assert commit.files.keys() == MODEL
    assert hub.tags["me/end"] == {"final": commit.id, "best": commit.id}
    assert read_card(commit.files["README.md"].decode()).step == hub.facts["best"]


@pytest.mark.slow
def test_tags_name_the_commit_of_their_step_also_after_the_step_was_taken_again(published):
    hub, _ = published
    assert hub.facts["resumed"] in ("checkpoint-2", "checkpoint-4")
    tags = hub.tags["me/terms"]
    assert tags.keys() == {"step-2", "step-4", "step-6", "step-8", "best", "final"}
    step = {tag: read_card(hub.files("me/terms", tag)["README.md"].decode()).step for tag in tags}
    assert [step[f"step-{each}"] for each in (2, 4, 6, 8)] == [2, 4, 6, 8]
    assert step["best"] == step["final"]  # the best checkpoint is loaded at the end
    assert hub.files("me/terms", "best")["model.safetensors"] == hub.files("me/terms")["model.safetensors"]
    ids = [commit.id for commit in hub.commits["me/terms"]]
    assert ids.index(tags["step-6"]) > ids.index(tags["step-2"])
    # Taken again, to the same bits: there was nothing to commit, or there is a later commit that has the tag.
    assert ids.count(tags["step-6"]) == 1


@pytest.mark.slow
def test_qtr_models_lists_revisions_checkpoints_and_authors_and_each_can_be_loaded(published, tmp_path):
    hub, home = published
    script = """
        import json, sys
        import torch
        from typer.testing import CliRunner
        from qwen_term_retrieval import TermRetriever
        from qwen_term_retrieval.cli import app

        def qtr(*arguments, command="models"):
            result = CliRunner().invoke(app, [command, *arguments])
            return result.output if result.exit_code == 0 else f"{result.exit_code} {result.output}"

        embeddings = {
            revision: TermRetriever.from_pretrained("me/terms", revision=revision).model.encode_terms(["sepsis"])
            for revision in ("step-2", "best", "final")
        }
        try:
            TermRetriever.from_pretrained("me/terms", revision="step-7")
        except FileNotFoundError as error:
            missing = str(error)
        print(json.dumps({
            "terms": json.loads(qtr("me/terms", "--json")),
            "table": qtr("me/terms"),
            "folder": json.loads(qtr(sys.argv[1] + "/terms", "--json")),
            "me": [each["model"] for each in json.loads(qtr("me/", "--json"))],
            "author": [each["model"] for each in json.loads(qtr("--author", "me", "--json"))],
            "all": [each["model"] for each in json.loads(qtr("/", "--json"))],
            "nobody": qtr("nobody/"),
            "typo": qtr("me/tarms"),
            "missing": missing,
            "index": [
                qtr("me/terms", sys.argv[2], sys.argv[2] + tag, "--revision", tag, command="index")
                for tag in ("step-2", "step-7")
            ],
            "best is final": torch.equal(embeddings["best"], embeddings["final"]),
            "best is step-2": torch.equal(embeddings["best"], embeddings["step-2"]),
        }))
    """
    hub.repositories["you/other"] = {"README.md": b"---\nlibrary_name: transformers\n---\n"}
    glossary = tmp_path / "glossary.txt"
    glossary.write_text("sepsis\ngout\nasthma\n")
    said = run_python(hub, tmp_path, script, home, glossary)
    assert said["best is final"]

    names = {name: row for row in said["terms"] for name in row["revision"]}
    # The tag itself is on the commit of the end, which has the threshold.
    assert said["best is step-2"] == (names["best"]["step"] == 2)
    assert names.keys() == hub.tags["me/terms"].keys() | {"main"}
    assert names["step-4"]["step"] == 4
    assert names["step-4"]["epoch"] == 2.0
    assert 0 <= names["step-4"]["recall@1"] <= names["step-4"]["recall@10"] <= 1
    dates = [row["date"] for row in said["terms"]]
    assert dates == sorted(dates, reverse=True)
    assert said["table"].splitlines()[0].split()[:3] == ["revision", "date", "step"]

    rows = {Path(row["folder"]).name: row for row in said["folder"]}
    assert rows.keys() == {"terms"} | {path.name for path in (home / "terms").glob("checkpoint-*")}
    assert rows["checkpoint-8"]["step"] == 8
    assert rows["checkpoint-8"]["whole"]
    assert rows["terms"]["best"]
    assert rows["terms"]["bytes"] > 80_000

    assert sorted(said["me"]) == sorted(said["author"]) == ["me/end", "me/terms"]
    assert "you/other" not in said["all"]
    assert "no models of this library by nobody" in said["nobody"]
    assert said["typo"].startswith("1 ")
    assert "no model 'me/tarms'" in said["typo"]
    assert "at revision 'step-7'" in said["missing"]
    assert "`qtr models me/terms` lists the revisions" in said["missing"]
    assert "3 terms" in said["index"][0]
    assert said["index"][1].startswith("1 ")
    assert "at revision 'step-7'" in said["index"][1]


@pytest.mark.slow
@pytest.mark.long
def test_a_hub_that_fails_costs_the_push_and_not_the_run(tmp_path):
    script = """
        import json, logging, sys
        from pathlib import Path
        from tests.doubles.tiny_trainer import make_tiny_trainer
        from qwen_term_retrieval.runs.checkpoints.publishing import HubPushError

        logging.basicConfig(stream=sys.stdout)
        output = sys.argv[1] + "/run"
        settings = {"push_to_hub": True, "hub_model_id": "me/terms"}
        try:
            make_tiny_trainer(output, **settings)
        except HubPushError as error:
            refused = str(error)
        trainer = make_tiny_trainer(output, hub_token="hf_test", hub_strategy="every_save", **settings)
        steps = trainer.train().global_step
        try:
            trainer.push_to_hub()
        except HubPushError as error:
            failed = str(error)
        # Where nothing can be copied aside, as on a full disk.
        full = Path(sys.argv[1], "full")
        full.mkdir()
        (full / ".push").touch()
        trainer = make_tiny_trainer(full, hub_token="hf_test", hub_strategy="every_save", **settings)
        full_steps = trainer.train().global_step
        try:
            trainer.push_to_hub()
        except HubPushError as error:
            full_failed = str(error)
        print(json.dumps({
            "refused": refused, "steps": steps, "failed": failed, "full_steps": full_steps, "full_failed": full_failed
        }))
    """
    with LocalHub() as hub:
        hub.broken = r"POST .*/commit/.*"
        environment = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "")
        said = run_python(hub, tmp_path, script, tmp_path, **environment)
        assert hub.files("me/terms") == {}
    assert "does not take the repository 'me/terms'" in said["refused"]
    assert "`hf auth login` or set HF_TOKEN" in said["refused"]
    assert said["steps"] == said["full_steps"] == 6
    assert f"the model is whole in {tmp_path / 'full'}" in said["full_failed"]
    output = tmp_path / "run"
    assert f"the model is whole in {output}" in said["failed"]
    assert f"hf upload me/terms {output}" in said["failed"]
    assert {path.name for path in output.iterdir()} >= MODEL
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
