import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from qwen_term_retrieval.retrieval import scoring
from qwen_term_retrieval.retrieval.index import TermIndex, TermIndexError
from qwen_term_retrieval.retrieval.indexes import folder as folder_module
from qwen_term_retrieval.retrieval.indexes import sketch
from qwen_term_retrieval.retrieval.indexes.sketch import Sketch
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.spellings import normalize_term


def unit_vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_index(entries, dim=8, seed=0):
    terms = list(Glossary(entries))
    index = TermIndex(dim, fingerprint="a model")
    index.add(terms, unit_vectors(sum(len(term.sayings) for term in terms), dim, seed=seed))
    return index


def names(index, hits):
    return [[index.terms[position].text for position in row] for row in hits.terms.tolist()]


@settings(max_examples=40, deadline=None)
@given(
    num_terms=st.integers(1, 40),
    num_aliases=st.integers(0, 3),
    num_queries=st.integers(1, 4),
    num_windows=st.integers(1, 5),
    top_k=st.integers(1, 50),
    block=st.integers(1, 64),
    seed=st.integers(0, 1000),
)
def test_blocked_search_equals_scoring_everything_at_once(
    num_terms, num_aliases, num_queries, num_windows, top_k, block, seed
):
    entries = [
        {"term": f"term w{'x' * i}", "aliases": [f"w{'x' * i} a{'y' * j}" for j in range(num_aliases)]}
        for i in range(num_terms)
    ]
    index = make_index(entries, seed=seed)
    query_BWD = unit_vectors(num_queries, num_windows, 8, seed=seed + 1)
    mask_BW = torch.rand(num_queries, num_windows, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask_BW[:, 0] = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK_SCORES", block)
        hits = index.search(query_BWD, top_k, mask_BW=mask_BW)

    scores_BWN = (query_BWD @ index.vectors_ND.T).masked_fill(~mask_BW[:, :, None], -torch.inf)
    scores_BWT = scores_BWN.unflatten(2, (num_terms, num_aliases + 1)).amax(dim=3)
    expected_BT = scores_BWT.amax(dim=1)
    k = min(top_k, num_terms)
    assert hits.scores.shape == (num_queries, k)
    torch.testing.assert_close(hits.scores, expected_BT.topk(k, dim=1).values)
    torch.testing.assert_close(expected_BT.gather(1, hits.terms), hits.scores)
    for query, (terms, windows) in enumerate(zip(hits.terms, hits.windows, strict=True)):
        torch.testing.assert_close(scores_BWT[query, windows, terms], hits.scores[query])
        assert len(set(terms.tolist())) == k


def test_aliases_are_collapsed_into_their_term():
    index = TermIndex(2, fingerprint="m")
    index.add(
        [Term("heart attack", 1, ("myocardial infarction", "infarct")), Term("stroke", 2)],
        torch.tensor([[1.0, 0.0], [0.99, 0.14], [0.98, 0.2], [0.0, 1.0]]),
    )
    hits = index.search(torch.tensor([[[1.0, 0.0]]]), top_k=3)
    assert names(index, hits) == [["heart attack", "stroke"]]


def test_equal_scores_come_in_the_order_of_the_index():
    index = TermIndex(2, fingerprint="m")
    index.add(list(Glossary([f"t{'x' * i}" for i in range(6)])), torch.tensor([[1.0, 0.0]]).expand(6, 2))
    hits = index.search(torch.tensor([[[1.0, 0.0]]]), top_k=6)
    assert hits.terms.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_terms_can_be_added_and_removed_while_in_use():
    index = make_index(["aorta", "vein", {"term": "capillary", "aliases": ["tiny vessel"]}])
    query = index.vectors_ND[0][None, None]
    assert [term.text for term in index.add(list(Glossary(["Artery", "aorta"])), unit_vectors(2, 8, seed=5))] == [
        "Artery"
    ]
    assert len(index) == 4
    assert "tiny  VESSEL" in index

    assert index.remove(["AORTA", "tiny vessel"]) == 2
    assert [term.text for term in index.terms] == ["vein", "Artery"]
    assert "capillary" not in index
    assert index.search(query, 5).terms.shape == (1, 2)
    assert index.add([Term("aorta", 7)], query[0]) == [Term("aorta", 7)]
    assert names(index, index.search(query, 1)) == [["aorta"]]


def test_words_are_first_spellings_whatever_came_and_went():
    index = make_index(["Aorta", {"term": "tiny Vessel", "aliases": ["capillary"]}, "vein"])
    index.remove(["Aorta"])
    index.add([Term("Deep-Vein Thrombosis", 99)], unit_vectors(1, 8))
    assert index.words([2, 0]) == [normalize_term("Deep-Vein Thrombosis"), "tiny vessel"]


def test_removing_an_unknown_term_names_it_and_removes_nothing():
    index = make_index(["aorta", "vein"])
    with pytest.raises(KeyError, match="'spleen' is not in the index"):
        index.remove(["aorta", "spleen"])
    assert len(index) == 2


@pytest.mark.parametrize(
    ("query", "top_k", "message"),
    [
        (torch.zeros(1, 1, 7), 1, r"expected query vectors \(B, W, 8\)"),
        (torch.zeros(1, 8), 1, "expected query vectors"),
        (torch.full((1, 1, 8), torch.nan), 1, "not finite"),
        (torch.zeros(1, 1, 8), 0, "top_k must be at least 1"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(query, top_k, message):
    with pytest.raises(ValueError, match=message):
        make_index(["aorta"]).search(query, top_k)


def test_vectors_that_do_not_fit_are_refused():
    index = TermIndex(8, fingerprint="m")
    with pytest.raises(ValueError, match="2 spellings need vectors"):
        index.add([Term("a", 1, ("b",))], unit_vectors(1, 8))
    with pytest.raises(ValueError, match="not finite"):
        index.add([Term("a", 1)], torch.full((1, 8), torch.inf))
    with pytest.raises(ValueError, match="holds no term"):
        index.search(unit_vectors(1, 1, 8))


def test_a_saved_index_finds_the_same_terms(tmp_path):
    index = make_index(["aorta", {"term": "vein", "aliases": ["vena"]}, "naïve café"])
    query = unit_vectors(3, 2, 8, seed=9)
    loaded = TermIndex.load(index.save(tmp_path / "deep" / "index"), fingerprint="a model")
    assert loaded.terms == index.terms
    expected, found = index.search(query, 2), loaded.search(query, 2)
    assert torch.equal(expected.scores, found.scores)
    assert torch.equal(expected.terms, found.terms)
    loaded.remove(["vena"])
    loaded.add([Term("new", 99)], unit_vectors(1, 8))
    assert TermIndex.load(tmp_path / "deep" / "index").terms == index.terms  # the file is never written through


def test_an_index_of_another_model_is_refused(tmp_path):
    folder = make_index(["aorta"]).save(tmp_path / "index")
    with pytest.raises(TermIndexError, match="another model"):
        TermIndex.load(folder, fingerprint="b model")


def test_an_index_is_replaced_only_when_asked(tmp_path):
    folder = make_index(["aorta"]).save(tmp_path / "index")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make_index(["vein"]).save(folder)
    make_index(["vein"]).save(folder, overwrite=True)
    assert [term.text for term in TermIndex.load(folder).terms] == ["vein"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_folder_that_is_no_index_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a term index"):
        make_index(["aorta"]).save(tmp_path, overwrite=True)
    (tmp_path / "meta.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(TermIndexError, match="not a term index"):
        make_index(["aorta"]).save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_index_and_nothing_else(tmp_path, monkeypatch):
    folder = make_index(["aorta"]).save(tmp_path / "index")

    def disk_full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(folder_module, "_write_vectors", disk_full)
    with pytest.raises(OSError, match="no space left"):
        make_index(["vein"]).save(folder, overwrite=True)
    assert [term.text for term in TermIndex.load(folder).terms] == ["aorta"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def write_first_version(index, folder, *, languages=True):
    """A folder as releases before parts wrote it."""
    folder.mkdir()
    np.save(folder / "vectors.npy", index.vectors_ND.numpy())
    rows = [(spelling, place, term) for place, term in enumerate(index.terms) for spelling in term.spellings]
    columns = {
        "spelling": [spelling for spelling, _, _ in rows],
        "term": [place for _, place, _ in rows],
        "term_id": [term.term_id for _, _, term in rows],
    }
    columns |= {"language": pa.array([term.language for _, _, term in rows], pa.string())} if languages else {}
    parquet.write_table(pa.table(columns), folder / "terms.parquet")
    meta = {
        **{"format": "qwen_term_retrieval.term_index", "version": 1, "model_fingerprint": "a model", "language": None},
        **{"dim": index.dim, "num_terms": len(index), "num_vectors": len(rows), "num_sounds": None, "alphabet": ""},
        "bytes": {name: (folder / name).stat().st_size for name in ("vectors.npy", "terms.parquet")},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize("languages", [True, False])
def test_an_index_of_an_earlier_release_opens_and_searches_as_before(tmp_path, languages):
    index = make_index(["aorta", {"term": "vein", "aliases": ["vena"]}, "naïve café"])
    opened = TermIndex.load(write_first_version(index, tmp_path / "old", languages=languages), fingerprint="a model")
    query = unit_vectors(3, 2, 8, seed=9)
    assert opened.terms == index.terms
    assert torch.equal(opened.search(query, 3).scores, index.search(query, 3).scores)
    assert opened.id_of("VENA") == index.id_of("vein")
    opened.remove(["aorta"])
    assert TermIndex.load(opened.save(tmp_path / "new")).terms == index.terms[1:]


@pytest.mark.parametrize("name", ["vectors.npy", "spellings.arrow", "keys.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_index_never_opens(tmp_path, name, damage):
    folder = make_index(["aorta", "vein"]).save(tmp_path / "index")
    (path,) = folder.rglob(name)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TermIndexError, match=name.replace(".", r"\.")):
        TermIndex.load(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are listed on Linux only")
def test_vectors_of_a_loaded_index_stay_on_disk(tmp_path):
    folder = make_index(["aorta"]).save(tmp_path / "index")
    index = TermIndex.load(folder)
    (vectors,) = folder.rglob("vectors.npy")
    assert str(vectors) in Path("/proc/self/maps").read_text()
    assert len(index) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TermIndex.load(tmp_path / "nowhere")


def test_a_bare_string_removes_no_letters():
    index = TermIndex(2, fingerprint="m")
    index.add([Term("a", 1), Term("b", 2)], torch.eye(2))
    with pytest.raises(ValueError, match="'ab' is one string"):
        index.remove("ab")
    assert repr(index) == "<TermIndex of 2 terms, said in 2 ways, 2 dimensions, held in float32>"


def test_a_folder_of_something_else_is_no_index(tmp_path):
    with pytest.raises(TermIndexError, match=r"is no term index: it has no meta\.json"):
        TermIndex.load(tmp_path)


def test_only_what_is_new_is_embedded_and_it_is_said():
    index = TermIndex(8, fingerprint="tests")
    index.add([Term("aorta", 1)], unit_vectors(1, 8))
    embedded = []

    def embed(terms):
        embedded.append([term.text for term in terms])
        return unit_vectors(sum(len(term.sayings) for term in terms), 8)

    new = index.add([Term("aorta", 1), Term("vein", 2, ("vena",)), Term("Vena", 3)], embed)
    assert embedded == [["vein"]]
    assert new == [Term("vein", 2, ("vena",))]
    assert index.add([Term("vein", 2)], embed) == []
    assert index.id_of("vena") == 2


def test_a_term_that_is_given_twice_keeps_its_first_vector_and_no_other_takes_its_place():
    index, twice, vectors_ND = TermIndex(8, fingerprint="tests"), Term("aorta", 1), unit_vectors(3, 8)
    assert index.add([twice, twice, Term("vein", 2)], vectors_ND) == [twice, Term("vein", 2)]
    assert torch.equal(index.vectors_ND, vectors_ND[[0, 2]])
    assert index.search(vectors_ND[2][None, None], top_k=2).terms[0, 0] == 1


def test_an_approximate_index_scores_what_it_proposes_exactly_and_says_what_it_is(tmp_path, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr("qwen_term_retrieval.retrieval.indexes.holding.SKETCH_FROM_ROWS", 64)
    exact, index = (TermIndex(32, fingerprint="m", hold=hold) for hold in ("float32", "ann"))
    terms, vectors_ND = list(Glossary(f"term {'x' * number}" for number in range(500))), unit_vectors(500, 32)
    for each in (exact, index):
        each.add(terms, vectors_ND)
        each.remove(["term x", "term xxx"])
    query = unit_vectors(2, 9, 32, seed=3)
    expected = exact.search(query, 10)
    for opened in (index, TermIndex.load(index.save(tmp_path / "index"))):
        assert "approximately" in repr(opened)
        found = opened.search(query, 10)
        assert len(set(found.terms.flatten().tolist()) & set(expected.terms.flatten().tolist())) >= 18
        torch.testing.assert_close(found.scores[:, 0], expected.scores[:, 0])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 400),
    dim=st.sampled_from([8, 64, 96, 200]),
    rank=st.integers(1, 200),
    top_k=st.integers(1, 40),
    aliases=st.integers(0, 2),
    hold=st.sampled_from(["float32", "int8"]),
    seed=st.integers(0, 1000),
)
def test_what_a_sketch_leaves_out_is_never_among_the_best(rows, dim, rank, top_k, aliases, hold, seed):
    """Banks of full rank, where the head is all, and of low rank with noise, where it is not; terms that are gone."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(min(rank, dim), dim, generator=generator)
    vectors_ND = torch.randn(rows * (1 + aliases), len(basis), generator=generator) @ basis
    vectors_ND += 0.05 * torch.randn(vectors_ND.shape, generator=generator)
    vectors_ND = torch.nn.functional.normalize(vectors_ND, dim=1)
    terms = [Term(f"t{row}", row, tuple(f"t{row} a{alias}" for alias in range(aliases)), None) for row in range(rows)]
    plain, quick = (TermIndex(dim, fingerprint="m", hold=hold) for _ in range(2))
    plain.add(terms, vectors_ND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwen_term_retrieval.retrieval.indexes.holding.SKETCH_FROM_ROWS", 1)
        quick.add(terms, vectors_ND)
    gone = [f"t{row}" for row in range(0, rows - 1, 5)]
    for index in (plain, quick):
        index.remove(gone)
    query_BWD = torch.nn.functional.normalize(torch.randn(2, 7, len(basis), generator=generator) @ basis, dim=2)
    mask_BW = torch.rand(2, 7, generator=generator) < 0.7
    expected, found = (index.search(query_BWD, top_k, mask_BW=mask_BW) for index in (plain, quick))
    torch.testing.assert_close(found.scores, expected.scores)
    scores_BT = expected.scores
    apart_BT = (scores_BT[:, 1:] - scores_BT[:, :-1]).abs() > 1e-5 if scores_BT.shape[1] > 1 else None
    if apart_BT is not None and bool(apart_BT.all()):
        assert torch.equal(found.terms[:, :-1], expected.terms[:, :-1])
    # Windows may be as good as one another: each scores what it is said to.
    for query_WD, scores, windows, places in zip(query_BWD, found.scores, found.windows, found.terms, strict=True):
        told = scores > -torch.inf
        by_window_WT = quick.cosines_by_window(query_WD, places[told].tolist())
        torch.testing.assert_close(by_window_WT[windows[told], torch.arange(int(told.sum()))], scores[told])


@pytest.mark.parametrize("dim", [64, 65, 66, 128])
def test_a_sketch_bounds_every_score_though_few_axes_are_left_for_its_tail(dim):
    """One axis in the tail was garbage now and then: the product over a single dimension is none in PyTorch 2.13."""
    generator = torch.Generator().manual_seed(6)
    basis = torch.randn(1, dim, generator=generator)
    vectors_ND = torch.randn(300, 1, generator=generator) @ basis + 0.05 * torch.randn(300, dim, generator=generator)
    vectors_ND = torch.nn.functional.normalize(vectors_ND, dim=1)
    query_QD = torch.nn.functional.normalize(torch.randn(7, 1, generator=generator) @ basis, dim=1)
    scores_N = (query_QD @ vectors_ND.T).amax(dim=0)
    for _ in range(40):
        sketch = Sketch.of(vectors_ND, with_tail=True)
        assert sketch.tail.codes.shape[1] != 1
        turned_QD = sketch.rotated(query_QD)
        assert bool((sketch.most(turned_QD, [7])[0] >= scores_N).all())
        assert bool((sketch.most_of(turned_QD, torch.arange(300)) >= scores_N).all())


@pytest.mark.parametrize("axes", [64, 384, 1040])
def test_products_of_int8_are_the_same_whole_numbers_in_float32(monkeypatch, axes):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(-127, 128, (rows, axes), dtype=torch.int8, generator=generator) for rows in (97, 200))
    one[0], other[0] = 127, 127
    expected = one.long() @ other.long().T
    for fast in (True, False):
        monkeypatch.setattr(sketch, "_INT8_IS_FAST", fast)
        assert torch.equal(sketch._products(one, other, sketch._room_for_products(one, len(other))).long(), expected)
