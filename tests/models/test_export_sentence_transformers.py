"""An exported retriever gives sentence-transformers the vectors that it gives itself."""

import sys

import numpy as np
import pytest
import soundfile
import torch

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel

TERMS = ["atrial fibrillation", "sepsis", "folder 7"]
CLIPS = [(np.random.default_rng(n).standard_normal(n) * 3000).astype(np.int16) for n in (8_000, 30_000)]


@pytest.fixture(scope="module")
def model():
    tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 1}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    torch.manual_seed(0)
    config = TermRetrievalConfig(audio_tower=tower, text_tower="phonemes:characters", embedding_dim=16)
    return TermRetrievalModel(config).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    library = pytest.importorskip("sentence_transformers", minversion="6.0", reason="sentence-transformers is missing")
    folder = tmp_path_factory.mktemp("export") / "model"
    model.export_sentence_transformers(folder)
    return library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def test_terms_and_clips_have_the_retrievers_own_vectors(exported, model, tmp_path):
    terms = exported.encode(TERMS, convert_to_tensor=True)
    torch.testing.assert_close(terms, model.encode_terms(TERMS), atol=1e-6, rtol=0)
    expected = model.encode_audio(CLIPS).vectors[:, 0]
    clips = [{"array": clip.astype(np.float32) / 32768, "sampling_rate": 16_000} for clip in CLIPS]
    torch.testing.assert_close(exported.encode(clips, convert_to_tensor=True), expected, atol=1e-5, rtol=0)
    soundfile.write(tmp_path / "clip.wav", CLIPS[1], 16_000)
    from_file = exported.encode([str(tmp_path / "clip.wav")], convert_to_tensor=True)
    torch.testing.assert_close(from_file, expected[1:], atol=1e-5, rtol=0)
    assert exported.similarity(from_file, terms).shape == (1, 3)


def test_terms_and_clips_in_one_batch_and_prompts_are_refused(exported):
    mixed = ["sepsis", {"array": np.zeros(16_000, np.float32), "sampling_rate": 16_000}]
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        exported.encode(mixed)
    with pytest.raises(ValueError, match="one batch is either"):
        exported[0].preprocess(mixed)
    with pytest.raises(ValueError, match="spoken without a prompt"):
        exported.encode(["sepsis"], prompt="find: ")


def test_a_folder_that_is_not_empty_is_left_alone(exported, model, tmp_path):
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        model.export_sentence_transformers(tmp_path)


def test_without_the_library_the_export_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "qwen_term_retrieval.models.sentence_transformers_module", False)
    with pytest.raises(ImportError, match="pip install 'sentence-transformers>=6'"):
        model.export_sentence_transformers(tmp_path / "out")
