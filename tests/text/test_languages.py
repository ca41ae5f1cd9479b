"""One glossary in several languages: each term is said, told apart, trained and searched in its own."""

import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.phonetics import get_phonemizer
from qwen_term_retrieval.text.spellings import term_id
from qwen_term_retrieval.training.arguments import ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.recall import search_bank
from qwen_term_retrieval.training.run import build_model
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

WORDS = {
    "en": ["Paris", "cheese", "window", "garden", "folder 7"],
    "fr": ["Paris", "fromage", "fenêtre", "jardin", "dossier 7"],
    "es": ["Paris", "queso", "ventana", "jardín", "carpeta 7"],
    "de": ["Paris", "Käse", "Fenster", "Garten", "Ordner 7"],
}
VOICES = {"en": "en-us", "fr": "fr", "es": "es", "de": "de"}
LANGUAGES = {code: f"espeak:{code}" for code in ("fr", "es", "de")}
WHISPER = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 16, "encoder_layers": 1}
WHISPER |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 32, "dropout": 0.0}


@pytest.fixture(scope="module")
def pack(say, tmp_path_factory):
    """Every word of every language, spoken twice by its own voice; a third time in the split `validation`."""
    utterances = []
    for language, words in WORDS.items():
        for word in words:
            for speed, split in ((0.9, "train"), (1.1, "train"), (1.0, "validation")):
                pcm = say(word, VOICES[language], speed)
                said = {"text": word, "terms": (word,), "term_spans": ((0.0, len(pcm) / 16_000),)}
                key = f"{split}/{language}/{word.replace(' ', '_')}/{speed}"
                utterances.append(Utterance(key, pcm, sampling_rate=16_000, language=language, split=split, **said))
    pack = tmp_path_factory.mktemp("words") / "pack"
    pack_corpus(utterances, pack)
    return pack


@pytest.fixture(scope="module")
def rows(pack):
    return datasets.load_dataset(str(pack))


def make_trainer(rows, output_dir, languages=LANGUAGES, text_tower="phonemes:espeak:en-us", glossary=None, **settings):
    torch.manual_seed(0)
    sounds = {"hidden_size": 16, "dropout": 0.0} | ({"languages": languages} if languages else {})
    model = TermRetrievalModel(
        TermRetrievalConfig(audio_tower=WHISPER, text_tower=text_tower, text_tower_config=sounds, embedding_dim=16)
    )
    settings = {"max_steps": 4, "save_strategy": "no", "eval_strategy": "no", "bank_negatives": 2} | settings
    args = TermRetrievalArguments(
        output_dir=str(output_dir), use_cpu=True, per_device_train_batch_size=8, learning_rate=1e-3, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    return TermRetrievalTrainer(model, args, rows["train"], rows["validation"], glossary)


def symbols_of(trainer, batch, candidates, identity):
    """What the text tower is given for the term with this id."""
    ids, places = batch[candidates]["ids_N"].tolist(), batch[candidates]["rows_N"].tolist()
    inputs = batch["model_inputs"]["text_inputs"]["input_ids"][places[ids.index(identity)]]
    symbols = trainer.retrieval_model.text_tower.config.symbols
    return [symbols[index - 2] for index in inputs.tolist() if index]


def test_a_batch_holds_the_symbols_of_each_language(rows, tmp_path):
    trainer = make_trainer(rows, tmp_path)
    trainer.get_train_dataloader()
    clips = trainer.train_clips
    batch = trainer.data_collator(clips.__getitems__([Visit(clip, draw=clip) for clip in range(len(clips))]))
    spoken = {
        code: symbols_of(trainer, batch, "term_candidates", term_id("Paris", code)) for code in (*LANGUAGES, "en")
    }
    assert spoken == {code: get_phonemizer(f"espeak:{VOICES[code]}").phonemes(["Paris"])[0] for code in spoken}
    assert len({tuple(symbols) for symbols in spoken.values()}) == 4
    seven = symbols_of(trainer, batch, "text_candidates", term_id("dossier sept", "fr"))
    assert seven == get_phonemizer("espeak:fr").phonemes(["dossier 7"])[0]


def test_the_same_word_in_another_language_is_neither_positive_nor_negative(rows, tmp_path):
    trainer = make_trainer(rows, tmp_path)
    french = trainer.train_clips.rows.filter(
        lambda text, language: (text, language) == ("Paris", "fr"), input_columns=["text", "language"]
    )[0]
    others = {term_id("Paris", code) for code in WORDS} - {term_id("Paris", "fr")}
    assert french["text_id"] == term_id("Paris", "fr")
    assert french["term_ids"] == [term_id("Paris", "fr")]
    assert others <= set(french["spoken_ids"])
    assert others <= set(french["same_text_ids"])


def test_the_bank_of_the_evaluation_names_the_language_of_every_term(rows, tmp_path):
    trainer = make_trainer(rows, tmp_path)
    bank = search_bank(trainer.glossary, trainer.eval_dataset)
    assert {(term.text, term.language) for term in bank} == {(word, code) for code in WORDS for word in WORDS[code]}
    metrics = trainer.evaluate()
    assert metrics["eval_pairs"] == metrics["eval_pairs_seen"] == len(bank) == 20


def test_evaluation_and_mining_encode_every_term_in_its_language(rows, tmp_path, monkeypatch):
    trainer = make_trainer(rows, tmp_path)
    encoded = []
    encode_terms = trainer.model.encode_terms

    def noting(terms, *args, languages=None, **kwargs):
        encoded.append(sorted(zip(terms, languages, strict=True)))
        return encode_terms(terms, *args, languages=languages, **kwargs)

    monkeypatch.setattr(trainer.model, "encode_terms", noting)
    trainer.evaluate()
    trainer.mine_hard_negatives()
    assert encoded == [sorted((word, code) for code in WORDS for word in WORDS[code])] * 2


def test_a_glossary_that_forgets_its_languages_is_warned_of(rows, tmp_path, caplog):
    trainer = make_trainer(rows, tmp_path / "none", glossary=Glossary(["fromage", "cheese"]))
    (warning,) = {record.getMessage() for record in caplog.records if "other languages" in record.getMessage()}
    assert warning.startswith("glossary: 1 terms without a language are spoken in other languages")
    assert "'fromage' in 'fr'" in warning
    assert trainer.glossary.id_of("fromage", "fr") == term_id("fromage")
    caplog.clear()
    make_trainer(rows, tmp_path / "some", glossary=Glossary([{"term": "fromage", "language": "fr"}, "cheese"]))
    assert not [record for record in caplog.records if "other languages" in record.getMessage()]


def test_a_run_in_four_languages_resumes_to_the_same_weights(rows, tmp_path):
    negatives = {"enable_hard_neg": True, "hard_neg_phonetic_ratio": 0.5, "hard_neg_k": 4, "hard_neg_refresh_steps": 2}
    settings = {"save_strategy": "steps", "save_steps": 2, **negatives}
    whole = make_trainer(rows, tmp_path, **settings)
    whole.train()
    resumed = make_trainer(rows, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    weights = resumed.retrieval_model.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in whole.retrieval_model.state_dict().items())
    assert resumed.evaluate()["eval_mrr"] == whole.evaluate()["eval_mrr"]


def test_a_language_without_a_phonemizer_is_refused_before_training(rows, tmp_path):
    message = r"(?s)10 rows are in 'es', the first has the key 'train/es/.*name \['fr'\].*\"es\": \"espeak:es\""
    with pytest.raises(ValueError, match=message):
        make_trainer(rows, tmp_path, languages={"fr": "espeak:fr"})


def test_the_settings_of_a_run_build_a_model_of_these_languages(tmp_path):
    model_args = ModelArguments(
        audio_tower="openai/whisper-tiny.en", text_tower_config=json.dumps({"languages": LANGUAGES})
    )
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True)
    assert build_model(model_args, args).text_tower.config.languages == LANGUAGES


@pytest.mark.parametrize("text_tower", ["phonemes:espeak:en-us", "phonemes:characters"])
def test_a_tower_that_reads_all_languages_alike_learns_the_same_without_them(rows, tmp_path, text_tower):
    rows = rows.filter(lambda text: text != "Paris", input_columns="text")
    with_languages = make_trainer(rows, tmp_path / "with", languages=None, text_tower=text_tower)
    with_languages.train()
    without = make_trainer(rows.remove_columns("language"), tmp_path / "without", languages=None, text_tower=text_tower)
    without.train()
    weights = without.retrieval_model.state_dict()
    for name, values in with_languages.retrieval_model.state_dict().items():
        torch.testing.assert_close(values, weights[name], atol=1e-5, rtol=0)


# Search -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def retriever():
    torch.manual_seed(0)
    sounds = {"hidden_size": 16, "languages": LANGUAGES}
    model = TermRetrievalModel(
        TermRetrievalConfig(audio_tower=WHISPER, text_tower_config=sounds, embedding_dim=16)
    ).eval()
    return TermRetriever(model)


def vector(retriever, text, language):
    return retriever.model.encode_terms([text], languages=[language])[0]


def test_an_index_says_each_term_in_its_language_and_keeps_it(retriever, tmp_path):
    path = tmp_path / "terms.csv"
    path.write_text("term,aliases,language\nParis,,fr\nParis,,\nfromage,camembert,fr\n", encoding="utf-8")
    retriever.index(path)
    assert retriever.add_terms([{"term": "Paris", "language": "de"}, {"term": "PARIS", "language": "fr-CA"}]) == 1
    retriever.save_index(tmp_path / "index")
    index = retriever.load_index(tmp_path / "index")
    assert [(term.text, term.language) for term in index.terms] == [
        ("Paris", "fr"), ("Paris", None), ("fromage", "fr"), ("Paris", "de"),
    ]  # fmt: skip
    said = [("Paris", "fr"), ("Paris", None), ("fromage", "fr"), ("camembert", "fr"), ("Paris", "de")]
    expected = torch.stack([vector(retriever, *term) for term in said])
    torch.testing.assert_close(index.vectors_ND, expected, atol=1e-6, rtol=0)
    assert index.id_of("Paris", "fr") != index.id_of("Paris", "de") != index.id_of("Paris")
    assert retriever.remove_terms(["Paris"], language="de") == 1
    assert retriever.remove_terms(["Paris"]) == 2
    assert [term.text for term in index.terms] == ["fromage"]


def test_the_command_line_reads_the_languages_of_a_glossary(retriever, pack, tmp_path):
    retriever.model.save_pretrained(tmp_path / "model")
    glossary = tmp_path / "terms.csv"
    glossary.write_text("term,language\nParis,fr\nParis,de\nfromage,fr\n", encoding="utf-8")

    def qtr(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "3 terms" in qtr("index", tmp_path / "model", glossary, tmp_path / "index")
    index = TermRetriever.from_pretrained(tmp_path / "model").load_index(tmp_path / "index")
    torch.testing.assert_close(index.vectors_ND[0], vector(retriever, "Paris", "fr"), atol=1e-6, rtol=0)
    recording = tmp_path / "noise.wav"
    soundfile.write(recording, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    found = qtr("search", tmp_path / "model", tmp_path / "index", recording, "--json", "--quiet").splitlines()
    assert {(match["term"], match["language"]) for match in map(json.loads, found)} == {
        ("Paris", "fr"), ("Paris", "de"), ("fromage", "fr"),
    }  # fmt: skip
    flags = ["--split", "validation", "--glossary", glossary, "--train-split", "train", "--quiet"]
    qtr("evaluate", tmp_path / "model", pack, *flags, "--output", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["bank"], found["pairs"], found["pairs_seen"]) == (3, 3, 3)


def test_an_entry_whose_language_the_model_lacks_is_named(retriever):
    entries = ["cheese", *({"term": term, "language": "it"} for term in ("formaggio", "vino"))]
    with pytest.raises(ValueError, match=r"glossary: 2 terms are in 'it', the first is 'formaggio': .*\"espeak:it\""):
        retriever.index(entries)


def test_a_glossary_without_languages_serves_rows_that_have_them():
    glossary = Glossary(["Paris", {"term": "Airbus A320", "aliases": ["A 320"]}])
    assert glossary.id_of("paris", "fr") == term_id("Paris")
    assert glossary.id_of("Airbus A320", "fr") == glossary.id_of("A 320", "de") == glossary[1].term_id


def test_the_evaluation_finds_terms_in_the_language_of_their_rows(retriever):
    tone = np.random.default_rng(0).normal(0, 3000, 16_000).astype(np.int16)
    rows = [
        {"audio": {"array": tone, "sampling_rate": 16_000}, "text": "Paris", "terms": ["Paris"], "language": code,
         "duration": 1.0, "term_starts": [None], "term_ends": [None]}
        for code in ("fr", "de", None)
    ]  # fmt: skip
    evaluator = RetrievalEvaluator(rows, distractors=[{"term": "fromage", "language": "fr"}])
    assert [(term.text, term.language) for term in evaluator.bank] == [
        ("Paris", None), ("Paris", "de"), ("Paris", "fr"), ("fromage", "fr"),
    ]  # fmt: skip
    metrics = evaluator(retriever)
    assert metrics["pairs"] == 3
    assert metrics["recall@5"] == 1.0
