"""Hard negatives of a run: mined, kept, mixed, and the same ones after a kill."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.trainer_callbacks import HardNegativeRefreshCallback
from qwen_term_retrieval.training.data.clips import data_identity, said_in
from qwen_term_retrieval.training.negatives import mining
from qwen_term_retrieval.training.negatives.mining import mine_hard_negatives, mix_negatives
from qwen_term_retrieval.training.negatives.nearest import NO_TERM
from qwen_term_retrieval.training.negatives.table import HardNegativeTable
from tests.doubles.mined_by_hand import by_hand
from tests.processes import mining as mining_process
from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.mining import prepare, some_rows, windowed_model
from tests.processes.trainer import make_trainer

# ---- kept on disk ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 50), st.integers(1, 8))
def test_a_step_compares_with_the_last_mining_that_was_over_when_its_batch_was_built(step, refresh_steps, lag):
    mined = HardNegativeTable(None, refresh_steps, lag, {}).mined_at(step)
    assert mined % refresh_steps == 0
    assert mined == 0 or mined + lag <= step
    assert step - lag - mined < refresh_steps


def test_a_table_gives_what_was_written_before_its_steps(tmp_path):
    table = HardNegativeTable(tmp_path / "negatives", refresh_steps=10, lag=2, meaning={})
    table.write(0, np.array([[1, 2], [3, NO_TERM]], np.int32))
    table.write(10, np.array([[4, 5], [6, 7]], np.int32))
    assert table(1, step=0) == table(1, step=11) == [3, NO_TERM]
    assert table(1, step=12) == [6, 7]
    with pytest.raises(FileNotFoundError, match="hard_neg_refresh_steps"):
        table(0, step=22)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(0, 40))
def test_a_resumed_run_looks_for_every_mining_that_it_will_read_and_not_make(step, refresh_steps, lag):
    table = HardNegativeTable(None, refresh_steps, lag, {})
    read = {table.mined_at(later) for later in range(step, step + lag + 2 * refresh_steps)}
    assert set(table.needed_from(step)) == {mined for mined in read if mined <= step}


def run_in(folder):
    """Settings of a run that keeps its minings in `folder`."""
    return SimpleNamespace(output_dir=folder.parent)


def resume_at(step, table, mine=lambda: np.zeros((2, 1), np.int32)):
    callback = HardNegativeRefreshCallback(table, mine)
    callback.on_train_begin(run_in(table.folder), TrainerState(global_step=step, max_steps=99), TrainerControl())


def test_minings_that_are_gone_are_made_by_the_resumed_model_all_at_once(tmp_path, caplog):
    table = HardNegativeTable(tmp_path / "hard_negatives", refresh_steps=10, lag=25, meaning={})
    table.write(40, np.array([[4], [4]], np.int32))
    calls = []
    resume_at(57, table, lambda: calls.append(1) or np.array([[7], [7]], np.int32))
    assert calls == [1]
    assert [table(0, step) for step in (57, 65, 75)] == [[7], [4], [7]]
    assert "mined at step 30, 50 are gone" in caplog.text
    resume_at(57, table, lambda: calls.append(1))
    assert calls == [1]


def test_a_rank_that_writes_nothing_reads_what_rank_0_has_written(tmp_path):
    table = HardNegativeTable(tmp_path / "hard_negatives", 10, 0, {})
    table.write(0, np.array([[4]], np.int32))
    assert table(0, step=0) == [4]

    def mine():
        # As rank 0 does, in its own process.
        np.save(tmp_path / "new.npy", np.array([[9]], np.int32))
        (tmp_path / "new.npy").replace(table.folder / "step_00000000.npy")
        return np.array([[9]], np.int32)

    state = TrainerState(global_step=0, max_steps=99, is_world_process_zero=False)
    HardNegativeRefreshCallback(table, mine).on_train_begin(run_in(table.folder), state, TrainerControl())
    assert table(0, step=0) == [9]


def test_minings_of_other_data_are_refused_with_what_changed_and_what_to_do(tmp_path):
    rows = some_rows(4)
    glossary = Glossary([*{term for terms in rows["terms"] for term in terms}, "further"])
    more_terms = Glossary([*glossary, "and another"])

    def table(rows, glossary):
        return HardNegativeTable(tmp_path / "hard_negatives", 10, 0, data_identity(rows, glossary))

    table(rows, glossary).write(0, np.zeros((4, 1), np.int32))
    resume_at(5, table(rows, glossary))
    relabelled = rows.map(lambda row: {"terms": ["further"] * len(row["terms"])})
    for others in (rows.select(range(3)), rows.select([1, 0, 2, 3]), relabelled):
        with pytest.raises(ValueError, match=r"clips: 4 with digest \w+ then, \d with digest \w+ now\)\. Resume"):
            resume_at(5, table(others, glossary))
    for other_glossary in (more_terms, Glossary(list(glossary)[::-1])):
        with pytest.raises(ValueError, match=r"\(terms: \d with digest .* --overwrite"):
            resume_at(5, table(rows, other_glossary))
    # A run that starts anew mines anew.
    resume_at(0, table(rows, more_terms))
    resume_at(5, table(rows, more_terms))


def test_tables_of_which_nobody_knows_what_they_mean_are_mined_anew(tmp_path, caplog):
    table = HardNegativeTable(tmp_path / "hard_negatives", 10, 0, {"terms": "1"})
    table.write(0, np.array([[5]], np.int32))
    (table.folder / "meaning.json").unlink()
    resume_at(3, table, lambda: np.array([[6]], np.int32))
    assert table(0, step=3) == [6]
    assert "are gone" in caplog.text


# ---- mined by the model ----------------------------------------------------------------------------------------------


@torch.no_grad()
def queries_by_hand(model, clips, load_audio, glossary):
    """Clip by clip and span by span: vectors, clips and positive scores of all queries."""
    vectors, owners, positives = [], [], []
    for clip, row in enumerate(clips.rows):
        inputs, num_frames_B = load_audio([{"clip": clip}])
        groups = {}
        for label, start, end in zip(row["terms"], row["term_starts"], row["term_ends"], strict=True):
            spans = [(start, end)] if start is not None else "windows"
            groups.setdefault(str(spans), (spans, []))[1].append(label)
        for spans, labels in groups.values():
            if spans == "windows":
                _, start_P, end_P = model.window_spans(num_frames_B)
            else:
                start_P, end_P = (torch.tensor(spans) * model.frame_rate).T
            index_P = torch.zeros(len(start_P), dtype=torch.long)
            vectors_PD = model(**inputs, clip_index_P=index_P, start_P=start_P, end_P=end_P).audio_PD
            best = (vectors_PD @ model.encode_terms(labels).T).max()
            vectors.append(vectors_PD)
            owners += [clip] * len(vectors_PD)
            positives += [best] * len(vectors_PD)
    return torch.cat(vectors), owners, torch.stack(positives)


def with_aliases(rows):
    """The labels of the rows are aliases of other names, among terms that nobody says."""
    labels = dict.fromkeys(term for terms in rows["terms"] for term in terms)
    named = [{"term": f"name {len(label)} {label[::-1]}", "aliases": [label]} for label in labels]
    return Glossary([*named, *(f"{first}{second}" for first in "klmnprst" for second in "aeiouy")])


@pytest.mark.parametrize("aliases", [False, True])
def test_the_table_is_what_embedding_and_scoring_each_clip_alone_gives(aliases):
    """A positive is the score of what was said, as it was spelled."""
    rows = some_rows(12, 4)
    model = windowed_model()
    clips, load_audio, glossary = prepare(rows, with_aliases(rows) if aliases else None)
    row_of_id = {term.term_id: row for row, term in enumerate(glossary)}
    said = [[row_of_id[identity] for identity in said_in(row) if identity in row_of_id] for row in clips.rows]
    query_QD, clip_Q, positive_Q = queries_by_hand(model, clips, load_audio, glossary)
    bank_ND = model.encode_terms(glossary.texts)
    for ratio in (0.95, 0.999):
        table = mine_hard_negatives(model, clips, load_audio, glossary, 4, max_positive_ratio=ratio, batch_size=5)
        assert table.tolist() == by_hand(query_QD, clip_Q, positive_Q, bank_ND, said, 4, ratio).tolist()


@pytest.mark.parametrize(("queries_at_once", "clips_at_once"), [(1, [4, 4, 4]), (512, [12])])
def test_batches_are_searched_together_until_they_hold_so_many_queries(monkeypatch, queries_at_once, clips_at_once):
    searched = []
    plain = mining.nearest_wrong_terms

    def search(query_QD, clip_Q, *rest, **settings):
        searched.append((len(set(clip_Q.tolist())), len(query_QD)))
        return plain(query_QD, clip_Q, *rest, **settings)

    monkeypatch.setattr(mining, "nearest_wrong_terms", search)
    monkeypatch.setattr(mining, "_QUERIES_AT_ONCE", queries_at_once)
    mining_process.mine("shared", batch_size=4)
    assert [clips for clips, _ in searched] == clips_at_once
    assert max(queries for _, queries in searched) > 4


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two processes mined together."""
    folder = tmp_path_factory.mktemp("mined")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, mining_process.__file__, str(folder)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [np.load(folder / f"{rank}.npz") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", mining_process.CASES)
def test_two_ranks_mine_what_one_mines_though_one_of_them_has_no_clip_with_a_term(two_ranks, case):
    alone = mining_process.mine(case)
    assert (alone >= 0).any()
    for found in two_ranks:
        np.testing.assert_array_equal(found[case], alone)


@pytest.mark.slow
def test_terms_that_the_ranks_embed_in_shares_are_those_of_one_rank_to_the_bit(two_ranks):
    _, _, glossary = prepare(some_rows(*mining_process.CASES["shared"]))
    whole = windowed_model().encode_terms(glossary.texts, languages=glossary.languages).numpy()
    for found in two_ranks:
        np.testing.assert_array_equal(found["vectors"], whole)


@pytest.mark.slow
def test_an_evaluation_embeds_each_term_on_one_rank_alone(two_ranks):
    mrr, embedded = mining_process.evaluate()
    assert [found["mrr"] for found in two_ranks] == [mrr, mrr]
    shares = [int(found["embedded"]) for found in two_ranks]
    assert sum(shares) == embedded
    assert all(shares)


def test_sources_are_mixed_in_their_shares_and_fill_up_for_each_other():
    mined, alike = (
        np.array([[1, 2, 3, 4], [1, 2, -1, -1]], np.int32),
        np.array([[9, 1, 8, 7], [5, -1, -1, -1]], np.int32),
    )
    assert mix_negatives(mined, alike, 0.0).tolist() == [[1, 2, 3, 4], [1, 2, 5, -1]]
    assert mix_negatives(mined, alike, 0.5).tolist() == [[9, 1, 2, 3], [5, 1, 2, -1]]
    assert mix_negatives(mined, alike, 1.0).tolist() == [[9, 1, 8, 7], [5, 1, 2, -1]]


@pytest.mark.slow
@pytest.mark.parametrize("phonetic_ratio", [0.0, 0.5])
def test_what_is_mined_was_not_said_and_is_what_the_model_confuses(tmp_path, phonetic_ratio):
    trainer = make_trainer(
        tmp_path, 16, mixed=True, enable_hard_neg=True, hard_neg_k=5, hard_neg_phonetic_ratio=phonetic_ratio
    )
    table_CK = trainer.mine_hard_negatives()
    rows, glossary = trainer.train_clips.rows, trainer.glossary
    assert table_CK.shape == (len(rows), 5)
    scores_CN = whole_clip_scores(trainer)
    chosen, all_others = [], []
    for clip, row in enumerate(rows):
        negatives = [term for term in table_CK[clip].tolist() if term != NO_TERM]
        if not row["terms"]:
            assert not negatives
            continue
        said = set(said_in(row))
        assert len(set(negatives)) == len(negatives) == 5
        assert not said & {glossary[term].term_id for term in negatives}
        others = [term for term in range(len(glossary)) if glossary[term].term_id not in said]
        chosen.append(scores_CN[clip][negatives].mean())
        all_others.append(scores_CN[clip][others].mean())
    assert np.mean(chosen) > np.mean(all_others) + (0.02 if phonetic_ratio else 0.05)


@torch.no_grad()
def whole_clip_scores(trainer):
    model = trainer.retrieval_model.eval()
    vectors_BWD = model.encode_audio(trainer.train_clips.rows["audio"]).vectors
    bank_ND = model.encode_terms(trainer.glossary.texts)
    return (vectors_BWD @ bank_ND.T).amax(dim=1).numpy()


@pytest.mark.slow
def test_a_resumed_run_meets_the_same_negatives_again(tmp_path):
    settings = {
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5, "max_batch_seconds": 60.0, "mixed": True,
        "learning_rate": 1e-3, "enable_hard_neg": True, "hard_neg_refresh_steps": 2, "hard_neg_phonetic_ratio": 0.3,
        "dataloader_num_workers": 1,
    }  # fmt: skip
    whole = make_trainer(tmp_path, 32, **settings)
    whole.train()
    paths = sorted((tmp_path / "hard_negatives").glob("*.npy"))
    mined = [np.load(path) for path in paths]
    assert len({array.tobytes() for array in mined}) == 3
    paths[-1].unlink()
    resumed = make_trainer(tmp_path, 32, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    weights = dict(resumed.model.named_parameters())
    assert all(torch.equal(values, weights[name]) for name, values in whole.model.named_parameters())
    for path, array in zip(paths, mined, strict=True):
        np.testing.assert_array_equal(np.load(path), array)
