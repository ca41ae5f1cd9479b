"""What many tests share: real weights, the demo corpus, and a process of our own to kill."""

import os

# Tests never wait for the Hub: weights come from the pinned registry packages. Tests of the Hub run their own server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch

from tests.doubles.small_corpora import corpus, hf_home, make_corpus, noise  # noqa: F401
from tests.doubles.spoken_terms import SPOKEN_TERMS


def pytest_collection_modifyitems(items):
    """The longest files first: of two processes, neither is then left alone with one at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/training/", "tests/test_types")))


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_single_threaded():
    # Two test processes on two cores: more threads would only fight.
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def demo_rows():
    """The demo corpus, packed on first use: splits train, validation and test of the row schema."""
    import qwen_term_retrieval  # noqa: F401  registers the feature and the builder

    return datasets.load_dataset("builders/term_audio")


@pytest.fixture(scope="session")
def say():
    """`say(text, voice="en-us", speed=1.0)`: int16 speech at 16 kHz."""
    import numpy as np
    import soxr

    from qwen_term_retrieval.synthesis.espeak import EspeakEngine

    engine = EspeakEngine()

    def say(text, voice="en-us", speed=1.0):
        pcm, rate = engine.say(text, voice, speed)
        return (soxr.resample(pcm, rate, 16_000) * 32_767).astype(np.int16)

    return say


@pytest.fixture(scope="session")
def listening_model(say):
    """A model that knows `SPOKEN_TERMS` well enough to find them in recordings. Do not change it.

    Its heads are solved by ridge regression, in two seconds: spans of a term to the term's own direction, spans that
    miss it to one direction that no term has.
    """
    import numpy as np

    from qwen_term_retrieval.audio.collate import pad_pcm
    from qwen_term_retrieval.models.retrieval_model import TermRetrievalConfig, TermRetrievalModel
    from qwen_term_retrieval.models.spans.pooling import pool_pyramid

    def solve(head, x_PH, y_PD, ridge):
        x_PH, y_PD = x_PH.double(), y_PD.double()
        mean_H, std_H, mean_D = x_PH.mean(0), x_PH.std(0) + 1e-6, y_PD.mean(0)
        x_PH = (x_PH - mean_H) / std_H
        kernel_PP = x_PH @ x_PH.T
        kernel_PP += ridge * kernel_PP.diagonal().mean() * torch.eye(len(kernel_PP))
        weight_HD = x_PH.T @ torch.linalg.solve(kernel_PP, y_PD - mean_D) / std_H[:, None]
        head.weight.copy_(weight_HD.T)
        head.bias.copy_(mean_D - mean_H @ weight_HD)

    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower="openai/whisper-tiny.en", embedding_dim=64)).eval()
    second = np.zeros(16_000, np.int16)
    spoken = [
        (label, say(term, voice, speed))
        for voice, speed in [("en-us", 0.9), ("en-us", 1.15), ("en-us+f2", 1.0)]
        for label, term in enumerate(SPOKEN_TERMS)
    ]
    spans = []
    for clip, (label, pcm) in enumerate(spoken):
        low, high = 50, 50 + len(pcm) / 320
        spans += [(clip, low + generator.uniform(-4, 4), high + generator.uniform(-4, 4), label) for _ in range(4)]
        for _ in range(12):
            start = generator.uniform(0, high)
            end = min(high + 50, start + generator.uniform(15, 160))
            if min(end, high) - max(start, low) < 0.5 * (max(end, high) - min(start, low)):
                spans.append((clip, start, end, len(SPOKEN_TERMS)))
    clip_P, start_P, end_P, label_P = (torch.tensor(column) for column in zip(*spans, strict=True))
    direction_ND = torch.linalg.qr(torch.randn(64, 64))[0][: len(SPOKEN_TERMS) + 1]
    with torch.no_grad():
        recordings = [np.concatenate([second, pcm, second]) for _, pcm in spoken]
        frames_BTH, num_frames_B = model.audio_frames(*pad_pcm(recordings))
        pooled_PH = pool_pyramid(frames_BTH, num_frames_B, clip_P, start_P, end_P, model.config.segments)
        solve(model.audio_head, pooled_PH, direction_ND[label_P], ridge=1e-2)
        pooled_NH = model.text_tower(**model.tokenize(SPOKEN_TERMS))
        solve(model.text_head, pooled_NH, direction_ND[:-1], ridge=1e-3)
    return model


@pytest.fixture(scope="session")
def hearing_model(listening_model, say):
    """The same with a small phoneme head that was fitted to three voices for some seconds. Do not change it."""
    import copy

    import numpy as np

    from qwen_term_retrieval.audio.collate import pad_pcm
    from qwen_term_retrieval.models.phoneme_head import PhonemeHead

    torch.manual_seed(0)
    model = copy.deepcopy(listening_model)
    tower = model.audio_tower
    settings = {"hidden_size": 64, "num_blocks": 1, "dropout": 0.0}
    head = PhonemeHead(settings, frame_size=tower.hidden_size, num_layers=1, frame_rate=tower.frame_rate)
    model.phoneme_head, model.config.phoneme_head = head, head.settings()
    pause = np.zeros(4_000, np.int16)
    said = [
        (term, np.concatenate([pause, say(term, voice, speed), pause]))
        for voice, speed in [("en-us", 0.9), ("en-us", 1.15), ("en-us+f2", 1.0)]
        for term in SPOKEN_TERMS
    ]
    with torch.no_grad():
        frames_BTH, num_frames_B = model.audio_frames(*pad_pcm([pcm for _, pcm in said]))
    ways = [torch.from_numpy(each[0]).long() for each in head.alphabet.pronunciations([term for term, _ in said])]
    phonemes_BP = torch.nn.utils.rnn.pad_sequence(ways, batch_first=True)
    num_phonemes_B = torch.tensor([len(way) for way in ways])
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(50):
        log_probs_BUC, num_B = head(frames_BTH, num_frames_B)
        loss = head.nll(log_probs_BUC, num_B, phonemes_BP, num_phonemes_B).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
