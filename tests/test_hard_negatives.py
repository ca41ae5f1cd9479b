"""Hard negatives of a run: mined, kept, mixed, and the same ones after a kill."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.training.hard_negatives import HardNegativeTable, mix_negatives, said_in
from qwen_term_retrieval.training.mining import NO_TERM
from tests.test_trainer import kill_and_resume, run_training
from tests.trainer_process import make_trainer


@given(st.integers(0, 500), st.integers(1, 50), st.integers(1, 8))
def test_a_step_compares_with_the_last_mining_that_was_over_when_its_batch_was_built(step, refresh_steps, lag):
    mined = HardNegativeTable(None, refresh_steps, lag).mined_at(step)
    assert mined % refresh_steps == 0
    assert mined == 0 or mined + lag <= step
    assert step - lag - mined < refresh_steps


def test_a_table_gives_what_was_written_before_its_steps(tmp_path):
    table = HardNegativeTable(tmp_path / "negatives", refresh_steps=10, lag=2)
    table.write(0, np.array([[1, 2], [3, NO_TERM]], np.int32))
    table.write(10, np.array([[4, 5], [6, 7]], np.int32))
    assert table(1, step=0) == table(1, step=11) == [3, NO_TERM]
    assert table(1, step=12) == [6, 7]
    with pytest.raises(FileNotFoundError, match="hard_neg_refresh_steps"):
        table(0, step=22)


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
def test_a_killed_run_meets_the_same_negatives_again(tmp_path):
    settings = [
        *("save_strategy=steps", "save_steps=2", "max_batch_seconds=60.0", "mixed=true", "learning_rate=0.001"),
        *(
            "enable_hard_neg=true",
            "hard_neg_refresh_steps=2",
            "hard_neg_phonetic_ratio=0.3",
            "dataloader_num_workers=1",
        ),
    ]
    whole, _, _ = run_training(tmp_path / "whole", 32, *settings)
    assert len({str(array.tobytes()) for array in tables_of(tmp_path / "whole")}) == 3
    resumed, _, _ = kill_and_resume(tmp_path / "killed", 32, *settings)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    for mined, again in zip(tables_of(tmp_path / "whole"), tables_of(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(mined, again)


def tables_of(output_dir):
    return [np.load(path) for path in sorted((output_dir / "hard_negatives").glob("*.npy"))]
