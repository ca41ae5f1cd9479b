"""Other ways to the terms that fit a clip: a CTC loss for each, and the lexicon decoder of Flashlight."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from qwen_term_retrieval.verification import PronunciationBank

Search = Callable[[torch.Tensor], list[int]]
_AT_ONCE = 1000
_TOP = 10


def by_ctc_loss(bank: PronunciationBank) -> Search:
    """`torch.nn.functional.ctc_loss` over all terms, a thousand at once, sorted by length so that little is padded."""
    order = bank.lengths.argsort(kind="stable")
    batches = []
    for first in range(0, len(bank), _AT_ONCE):
        rows = order[first : first + _AT_ONCE]
        sounds = [torch.from_numpy(bank[row].astype("int64")) for row in rows]
        batches.append((torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True), torch.tensor(bank.lengths[rows])))
    order_R = torch.from_numpy(order)

    def search(log_probs_TC: torch.Tensor) -> list[int]:
        losses = []
        for sounds_RS, lengths_R in batches:
            frames_R = torch.full_like(lengths_R, len(log_probs_TC))
            log_probs_TRC = log_probs_TC[:, None].expand(-1, len(lengths_R), -1)
            losses.append(torch.nn.functional.ctc_loss(log_probs_TRC, sounds_RS, frames_R, lengths_R, reduction="none"))
        return order_R[torch.cat(losses).topk(min(_TOP, len(bank)), largest=False).indices].tolist()

    return search


def by_flashlight(bank: PronunciationBank, beam: int = 500) -> Search | None:
    """The prefix beam search of `flashlight-text`, each term a word and each clip one; None where it is not installed.

    It has no way to ask for one word: each costs 10, and hypotheses of several are left out. Without a language model
    it keeps one hypothesis of all that end alike, so that few terms come out, often one.
    """
    if importlib.util.find_spec("flashlight") is None:
        return None
    from flashlight.lib.text.decoder import (
        CriterionType,
        LexiconDecoder,
        LexiconDecoderOptions,
        SmearingMode,
        Trie,
        ZeroLM,
    )

    # Its silence must be a token of its own; one that no frame has.
    silence = bank.num_classes
    trie = Trie(bank.num_classes + 1, silence)
    for row in range(len(bank)):
        trie.insert(bank[row].tolist(), int(bank.owners_R[row]), 0.0)
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=beam, beam_size_token=bank.num_classes, beam_threshold=100.0, lm_weight=0.0, word_score=-10.0,
        unk_score=float("-inf"), sil_score=float("-inf"), log_add=False, criterion_type=CriterionType.CTC,
    )  # fmt: skip
    decoder = LexiconDecoder(options, trie, ZeroLM(), silence, 0, -1, [], False)

    def search(log_probs_TC: torch.Tensor) -> list[int]:
        frames_TC = torch.nn.functional.pad(log_probs_TC, (0, 1), value=-1e4).contiguous()
        found: dict[int, None] = {}
        for hypothesis in decoder.decode(frames_TC.data_ptr(), *frames_TC.shape):
            words = [word for word in hypothesis.words if word >= 0]
            if len(words) == 1:
                found.setdefault(words[0])
        return list(found)[:_TOP]

    return search
