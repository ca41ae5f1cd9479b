"""From rows to queries and candidates: what is said where, and what must never be a negative."""

import pytest
import torch

from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.training.data.collator import TermCollator, pad_lists

FRAME_RATE = 50.0


def load_audio(rows):
    frames = torch.tensor([int(row["duration"] * FRAME_RATE) for row in rows])
    return {"frames_BTH": torch.zeros(len(rows), int(frames.max()), 4), "num_frames_B": frames}, frames


def window_spans(num_frames_B):
    starts = torch.arange(0, int(num_frames_B[0]) - 20, 10, dtype=torch.float32)
    return torch.zeros(len(starts), dtype=torch.long), starts, starts + 20


def tokenize(texts, languages):
    return {"input_ids": pad_lists([[ord(letter) for letter in text] for text in texts])}


def collate(*rows, span_jitter=0.0):
    return TermCollator(load_audio, window_spans, tokenize, FRAME_RATE, span_jitter)(rows)


def row(
    text,
    terms=(),
    spans=None,
    *,
    duration=2.0,
    text_id=100,
    same_text_ids=(),
    term_ids=None,
    spelling_ids=None,
    spoken_ids=(),
    draw=0,
    language=None,
):
    spans = [(None, None)] * len(terms) if spans is None else spans
    term_ids = list(range(1, len(terms) + 1)) if term_ids is None else term_ids
    return {
        "text": text,
        "terms": list(terms),
        "term_starts": [start for start, _ in spans],
        "term_ends": [end for _, end in spans],
        "duration": duration,
        "text_id": text_id,
        "same_text_ids": list(same_text_ids),
        "language": language,
        "term_ids": term_ids,
        "spelling_ids": term_ids if spelling_ids is None else spelling_ids,
        "spoken_ids": list(spoken_ids),
        "draw": draw,
    }


def test_a_known_span_is_one_query_at_its_frames():
    batch = collate(row("give the drug now", ["drug"], [(0.5, 1.0)]))
    query = batch["term_queries"]["windows_QW"]
    assert query.shape == (1, 1)
    spans = batch["model_inputs"]
    assert (spans["start_P"][query[0, 0]], spans["end_P"][query[0, 0]]) == (25.0, 50.0)


def test_unknown_spans_share_one_query_over_all_windows():
    batch = collate(row("two terms here", ["two", "terms"]))
    assert batch["term_queries"]["windows_QW"].shape == (1, len(window_spans(torch.tensor([100]))[1]))
    assert batch["term_queries"]["positive_ids_QP"].tolist() == [[1, 2]]


def test_a_clip_learns_the_spelling_that_was_said_and_no_other_of_its_term_is_wrong():
    said = {"term_ids": [5], "spoken_ids": [5, 6]}
    batch = collate(
        row("atrial fibrillation", ["atrial fibrillation"], [(0, 2.0)], spelling_ids=[5], text_id=5, **said),
        row("AF", ["AF"], [(0, 2.0)], spelling_ids=[6], text_id=6, **said),
    )
    assert batch["term_queries"]["positive_ids_QP"].tolist() == [[5], [6]]
    assert batch["term_queries"]["neutral_ids_QM"].tolist() == [[5, 6], [5, 6]]
    assert batch["term_candidates"]["ids_N"].tolist() == [5, 6]
    assert batch["term_candidates"]["rows_N"].tolist() == batch["text_candidates"]["rows_N"].tolist() == [0, 1]


def test_a_batch_in_which_nobody_speaks_embeds_one_text_that_nothing_is_compared_with():
    bank = [Term("sepsis", 8)]
    batch = TermCollator(load_audio, window_spans, tokenize, FRAME_RATE, bank=bank)([row("", text_id=-1)])
    assert batch["model_inputs"]["text_inputs"]["input_ids"].shape == (1, len("sepsis"))
    assert len(batch["text_candidates"]["ids_N"]) == len(batch["term_candidates"]["ids_N"]) == 0


def test_every_term_of_the_clip_and_every_spoken_term_is_no_negative():
    batch = collate(row("atrial fibrillation", ["atrial fibrillation"], [(0, 2.0)], term_ids=[5], spoken_ids=[5, 9]))
    assert batch["term_queries"]["neutral_ids_QM"].tolist() == [[5, 9]]


def test_a_text_that_is_a_term_is_embedded_once_for_both_losses():
    batch = collate(row("aspirin", ["aspirin"], [(0, 2.0)], text_id=7, term_ids=[7]))
    assert len(batch["model_inputs"]["text_inputs"]["input_ids"]) == 1
    assert batch["text_candidates"]["rows_N"].tolist() == batch["term_candidates"]["rows_N"].tolist() == [0]


def test_a_repeated_term_is_one_candidate():
    batch = collate(
        row("aspirin", ["aspirin"], [(0, 2.0)], text_id=7, term_ids=[7]),
        row("Aspirin!", ["Aspirin"], [(0, 2.0)], text_id=7, term_ids=[7]),
    )
    assert batch["term_candidates"]["ids_N"].tolist() == [7]
    assert len(batch["term_queries"]["windows_QW"]) == 2


def test_a_no_term_clip_has_a_text_query_and_no_term_query():
    batch = collate(row("nothing of note"), row("aspirin", ["aspirin"], [(0, 2.0)], text_id=7, term_ids=[7]))
    assert len(batch["text_queries"]["windows_QW"]) == 2
    assert len(batch["term_queries"]["windows_QW"]) == 1


def test_an_unknown_text_has_no_text_query():
    batch = collate(row("", ["aspirin"], [(0.2, 0.8)], text_id=-1))
    assert len(batch["text_queries"]["windows_QW"]) == 0
    assert batch["text_queries"]["windows_QW"].shape == (0, 1)


def test_bank_negatives_are_candidates_of_the_term_loss_alone_and_the_same_on_any_number_of_ranks():
    bank = Glossary([f"term {number}" for number in range(50)])
    rows = [row("aspirin", ["aspirin"], [(0, 2.0)], text_id=700 + n, term_ids=[700 + n], draw=n) for n in range(4)]

    def candidates(rows):
        collator = TermCollator(load_audio, window_spans, tokenize, FRAME_RATE, bank=bank, bank_negatives=3)
        batch = collator(rows)
        assert len(batch["text_candidates"]["ids_N"]) == len(rows)
        return set(batch["term_candidates"]["ids_N"].tolist())

    together = candidates(rows)
    assert 4 + 6 <= len(together) <= 4 + 12
    assert together == candidates(rows[:2]) | candidates(rows[2:])


@pytest.mark.parametrize("draw", range(20))
def test_jitter_stays_inside_the_clip_and_within_its_share(draw):
    batch = collate(row("drug", ["drug"], [(0.0, 1.0)], duration=1.0, draw=draw), span_jitter=0.2)
    query = batch["term_queries"]["windows_QW"][0, 0]
    start, end = batch["model_inputs"]["start_P"][query], batch["model_inputs"]["end_P"][query]
    assert 0 <= start <= 10
    assert 40 <= end <= 50


def test_jitter_is_a_function_of_the_draw():
    spans = [
        collate(row("a drug", ["drug"], [(0.3, 1.0)], draw=draw), span_jitter=0.2)["model_inputs"]["start_P"].tolist()
        for draw in (1, 1, 2)
    ]
    assert spans[0] == spans[1] != spans[2]


def test_hard_negatives_are_private_to_their_clip_and_candidates_of_neither_other_loss():
    bank = Glossary([f"term {number}" for number in range(9)])
    chosen = {0: [3, 5, -1], 1: [5, -1, -1]}
    rows = [
        {**row("a drug", ["a", "drug"], [(0, 1), (None, None)], text_id=70, term_ids=[71, 72]), "clip": 0, "step": 0},
        {**row("aspirin", ["aspirin"], [(0, 2.0)], text_id=80, term_ids=[80]), "clip": 1, "step": 0},
        {**row("nothing of note", text_id=90), "clip": 2, "step": 0},
    ]
    collator = TermCollator(
        load_audio, window_spans, tokenize, FRAME_RATE, bank=bank, hard_negatives_of=lambda clip, step: chosen[clip]
    )
    batch = collator(rows)
    first, second = [bank[3].term_id, bank[5].term_id], [bank[5].term_id, -1]
    assert batch["term_queries"]["negative_ids_QK"].tolist() == [first, first, second]
    assert batch["hard_negatives"]["ids_N"].tolist() == first
    assert not set(first) & set(batch["term_candidates"]["ids_N"].tolist())
    assert len(batch["model_inputs"]["text_inputs"]["input_ids"]) == 3 + 3 - 1 + 2


def test_clips_without_a_term_ask_for_all_windows_and_leave_out_what_they_say():
    rows = [row("nothing of note", spoken_ids=[4]), row("aspirin", ["aspirin"], [(0, 2.0)], text_id=7, term_ids=[7])]
    batch = TermCollator(load_audio, window_spans, tokenize, FRAME_RATE, no_term_queries=True)(rows)
    queries = batch["no_term_queries"]
    assert queries["windows_QW"].shape == (1, len(window_spans(torch.tensor([100]))[1]))
    assert queries["neutral_ids_QM"].tolist() == [[4]]
    assert queries["positive_ids_QP"].tolist() == [[-1]]
