"""An index that is searched, added to and removed from by many threads at once."""

import threading

import pytest
import torch

from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.spellings import term_id

DIM, SEARCHERS, WRITERS, ROUNDS = 16, 8, 4, 40


def vector_of(text):
    """What names a term is in its vector: any other term's is recognised as wrong."""
    generator = torch.Generator().manual_seed(term_id(text) % (1 << 31))
    return torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)


def embed(terms):
    vectors = [vector_of(spelling) for term in terms for spelling in term.spellings]
    return torch.stack(vectors) if vectors else torch.zeros(0, DIM)


def speaker():
    def say(terms):
        return [[torch.tensor([1 + term.term_id % 5, 1 + term.term_id % 7]).short().numpy()] for term in terms]

    return Speaker(say, num_classes=9, alphabet="made by hand")


def terms_of(texts):
    return [Term(text, term_id(text)) for text in texts]


def run(workers):
    errors, threads = [], []

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    for work in workers:
        threads.append(threading.Thread(target=guarded, args=(work,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "locked up"
    assert errors == []


@pytest.mark.parametrize("hold", ["float32", "int8"])
def test_searches_see_one_state_while_others_add_and_remove(hold, monkeypatch):
    # So that all that is made for large parts is made, again and again.
    monkeypatch.setattr("qwen_term_retrieval.retrieval.indexes.holding.SKETCH_FROM_ROWS", 64)
    index = TermIndex(DIM, fingerprint="made by hand", hold=hold)
    stable = terms_of(f"stable w{'x' * number}" for number in range(200))
    index.add(stable, embed, speaker())
    writing = threading.Event()
    writing.set()

    def write(own):
        for step in range(ROUNDS):
            mine = terms_of(f"writer {'abcd'[own]} step {'y' * step} {'z' * each}" for each in range(3))
            assert index.add(mine, embed, speaker()) == mine
            if step % 2:
                assert index.remove([mine[0].text, mine[2].text]) == 2

    def search(own):
        number = own
        while writing.is_set():
            number = (number + SEARCHERS) % len(stable)
            snapshot = index.snapshot()
            query = vector_of(stable[number].text)[None, None]
            hits = snapshot.search(query, 5)
            assert snapshot.terms[hits.terms[0, 0]].text == stable[number].text
            places = hits.terms[0].tolist()
            assert len(set(places)) == 5
            for place, score in zip(places, hits.scores[0].tolist(), strict=True):
                assert vector_of(snapshot.terms[place].text) @ query[0, 0] == pytest.approx(score, abs=1e-4)
            bank = snapshot.pronunciations_of(torch.tensor(sorted(places)).numpy())
            for row, owner in enumerate(bank.owners_R.tolist()):
                assert bank[row].tolist() == speaker().say([snapshot.terms[owner]])[0][0].tolist()
            # Without a snapshot, one search still is of one state.
            assert index.search(query, 1).scores[0, 0] == pytest.approx(1, abs=1e-4)

    def write_all():
        run([lambda own=own: write(own) for own in range(WRITERS)])
        writing.clear()

    run([write_all, *(lambda own=own: search(own) for own in range(SEARCHERS))])
    expected = {term.text for term in stable} | {
        f"writer {'abcd'[own]} step {'y' * step} {'z' * each}"
        for own in range(WRITERS)
        for step in range(ROUNDS)
        for each in (range(3) if step % 2 == 0 else [1])
    }
    texts = [term.text for term in index.terms]
    assert len(texts) == len(set(texts)) == len(index.vectors_ND)
    assert set(texts) == expected
    torch.testing.assert_close(index.vectors_ND, torch.stack([vector_of(text) for text in texts]))
    assert len(index.pronunciations) == len(index)


def test_a_term_that_two_threads_add_at_once_is_there_once():
    index = TermIndex(DIM, fingerprint="made by hand")
    together = threading.Barrier(4)
    new = []

    def add():
        terms = terms_of(f"term {'x' * number}" for number in range(50))
        together.wait()
        new.append(index.add(terms, embed, speaker()))

    run([add] * 4)
    assert sum(map(len, new)) == len(index) == len(index.vectors_ND) == len(index.pronunciations) == 50


def test_a_snapshot_keeps_what_is_removed_later():
    index = TermIndex(DIM, fingerprint="made by hand")
    index.add(terms_of(["aorta", "vein"]), embed)
    before = index.snapshot()
    index.remove(["aorta"])
    index.add(terms_of(["artery"]), embed)
    assert [term.text for term in before.terms] == ["aorta", "vein"]
    assert [term.text for term in index.terms] == ["vein", "artery"]
    hits = before.search(vector_of("aorta")[None, None], 1)
    assert before.terms[hits.terms[0, 0]].text == "aorta"
