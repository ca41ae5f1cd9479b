"""The second look of a decoder: how likely Whisper is to write each candidate for a clip (Radford et al. 2022).

Sounds cannot tell "sail" from "sale", nor "hole" from "whole"; a decoder knows what people write, and hears more than
phonemes. The candidates' spellings (as given, lower case, capitalised; with and without a full stop) are a prefix tree
of tokens, walked level by level in one batch with cached keys and values. The `width` likeliest prefixes of a level go
on. A candidate's score is the log-probability of all its spellings together, each with the token that ends a text.

The clip is heard alone, with one second of silence after it and no more: without, the decoder often writes on, and 30 s
of padding cost ten times as much. 25 candidates cost about one step of the decoder a token, whatever their number.

Shapes: S samples, T encoder frames, H hidden, V tokens of the vocabulary, M prefixes, N candidates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperForConditionalGeneration
from transformers.cache_utils import EncoderDecoderCache

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.audio_towers.whisper import WhisperTower
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint

_SILENCE_SAMPLES = SAMPLING_RATE


@dataclass(frozen=True, eq=False)
class SpellingScores:
    """What the decoder makes of N candidates.

    log_probs_N: float32, of the spellings that were followed to their ends. Where none was, that of the prefixes that
    were reached, but no more than the worst of the candidates that were followed. followed_N: bool, whether one was.
    """

    log_probs_N: np.ndarray
    followed_N: np.ndarray


class SpellingVerifier:
    """A Whisper with its decoder.

    Args:
        model: any Whisper.
        tokenizer: its own.
        language: code of what is spoken, such as "en"; a model of English alone needs none.

    Raises:
        ValueError: the model does not know the language.

    Example:
        >>> verifier = SpellingVerifier.from_pretrained("openai/whisper-base")            # doctest: +SKIP
        >>> scores = verifier.score(pcm_S, ["a hole in the ground", "a whole in the ground"])  # doctest: +SKIP
        >>> scores.log_probs_N.argmax()                                                   # doctest: +SKIP
        0
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, *, language: str = "en"
    ):
        self.model = model.eval()
        self.tokenizer = _with_first_merge(tokenizer.backend_tokenizer)
        # Around the model's own encoder; on "meta", the one that a tower makes costs nothing.
        with torch.device("meta"):
            self._tower = WhisperTower(model.config.to_dict())
        self._tower.encoder = model.model.encoder
        self._prompt = _prompt(model, language)
        self._end = model.generation_config.eos_token_id

    @classmethod
    def from_pretrained(cls, name: str | Path, *, language: str = "en") -> SpellingVerifier:
        """A checkpoint's, by its Hub id or folder; raises as `resolve_checkpoint`."""
        folder = resolve_checkpoint(name)
        model = WhisperForConditionalGeneration.from_pretrained(folder)
        return cls(model, AutoTokenizer.from_pretrained(folder), language=language)

    @torch.inference_mode()
    def score(self, pcm_S: np.ndarray, texts: Sequence[str], *, width: int = 8) -> SpellingScores:
        """Score candidates for what is said in a clip.

        Args:
            pcm_S: int16, 16 kHz, the whole of it heard.
            texts: candidates, as a recogniser would write them.
            width: prefixes of the same number of tokens that are followed, at least 1.

        Raises:
            ValueError: samples of another type, a clip that is empty or with the silence longer than the model hears,
                a candidate without a letter or digit, or a width below 1.
        """
        self._check(pcm_S, width)
        spellings = [spellings_of(text) for text in texts]
        written = self.tokenizer.encode_batch([each for ways in spellings for each in ways], add_special_tokens=False)
        tree = _TokenTree([[*encoding.ids, self._end] for encoding in written])
        reached = self._walk(self.encode(pcm_S), tree, width)
        ends = iter(tree.ends)
        scored = [_sum_of_spellings(tree, list(islice(ends, len(ways))), reached) for ways in spellings]
        log_probs_N = np.array([log_prob for log_prob, _ in scored], np.float32)
        followed_N = np.array([followed for _, followed in scored], dtype=bool)
        # A prefix is likelier than any whole text; those that were left behind others must not stand before them.
        worst = log_probs_N.min(where=followed_N, initial=0.0)
        log_probs_N[~followed_N] = np.minimum(log_probs_N[~followed_N], worst)
        return SpellingScores(log_probs_N, followed_N)

    def _check(self, pcm_S: np.ndarray, width: int) -> None:
        if pcm_S.dtype != np.int16 or pcm_S.ndim != 1 or not len(pcm_S):
            raise ValueError(f"expected int16 samples (S,), at least one, not {pcm_S.dtype} {pcm_S.shape}")
        most = self._tower.max_seconds - _SILENCE_SAMPLES / SAMPLING_RATE
        if len(pcm_S) > most * SAMPLING_RATE:
            raise ValueError(f"a clip of {len(pcm_S) / SAMPLING_RATE:.1f} s; the decoder hears at most {most:.0f} s")
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")

    @torch.inference_mode()
    def encode(self, pcm_S: np.ndarray) -> torch.Tensor:
        """The encoder's frames of a clip and of the silence after it, (1, T, H)."""
        heard_1S = torch.from_numpy(np.pad(pcm_S, (0, _SILENCE_SAMPLES)))[None].to(self.model.device)
        num_samples_1 = torch.tensor([heard_1S.shape[1]], device=self.model.device)
        mel, num_mel_1 = self._tower.mel(heard_1S, num_samples_1)
        hidden_1TH = self._tower.encode(mel, num_mel_1)[0]
        return hidden_1TH[:, : int(self._tower.num_frames(num_samples_1))]

    def _walk(self, hidden_1TH: torch.Tensor, tree: _TokenTree, width: int) -> np.ndarray:
        """The log-probability of each node's prefix, float64; NaN where nobody came."""
        reached = np.full(len(tree.tokens), np.nan)
        reached[0] = 0.0
        front = [0]
        log_probs_MV, cache = self._step(hidden_1TH, torch.tensor([self._prompt]), None)
        while True:
            steps = [(place, child) for place, node in enumerate(front) for child in tree.children[node]]
            for place, child in steps:
                reached[child] = reached[front[place]] + log_probs_MV[place, tree.tokens[child]]
            going_on = [(place, child) for place, child in steps if tree.children[child]]
            going_on = sorted(going_on, key=lambda step: -reached[step[1]])[:width]
            if not going_on:
                return reached
            front = [child for _, child in going_on]
            cache.batch_select_indices(torch.tensor([place for place, _ in going_on], device=self.model.device))
            next_M1 = torch.tensor([[tree.tokens[node]] for node in front])
            log_probs_MV, cache = self._step(hidden_1TH.expand(len(front), -1, -1), next_M1, cache)

    def _step(
        self, hidden_MTH: torch.Tensor, tokens_ML: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[np.ndarray, EncoderDecoderCache]:
        """Log-probabilities of what follows the tokens, float32 (M, V), and the cache with these tokens in it."""
        output = self.model.model.decoder(
            input_ids=tokens_ML.to(self.model.device),
            encoder_hidden_states=hidden_MTH,
            past_key_values=cache,
            use_cache=True,
        )
        logits_MV = self.model.proj_out(output.last_hidden_state[:, -1])
        return logits_MV.float().log_softmax(dim=-1).cpu().numpy(), output.past_key_values


def spellings_of(text: str) -> list[str]:
    """How a recogniser may write a term: as it is, in lower case and capitalised, each with and without a full stop.

    Raises:
        ValueError: nothing to say in it.
    """
    text = " ".join(text.split())
    if not re.search(r"\w", text):
        raise ValueError(f"candidate {text!r} has no letter and no digit")
    forms = dict.fromkeys([text, text.lower(), text[0].upper() + text[1:], text.lower().capitalize()])
    # A text begins with a space, as the tokenizer writes it.
    return [f" {form}{end}" for form in forms for end in ("", ".")]


def _with_first_merge(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with the first merge of Whisper's byte pairs where that was lost.

    Old conversions took the first line of the merges for a heading. Theirs write " the" as " " and "the", which the
    decoder never does: terms with a word in "t" would lose ten nats by each.
    """
    if len(tokenizer.encode(" the", add_special_tokens=False).ids) == 1:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"].insert(0, ["Ġ", "t"])
    return Tokenizer.from_str(json.dumps(state))


def _prompt(model: WhisperForConditionalGeneration, language: str) -> list[int]:
    settings: Any = model.generation_config
    tokens = [settings.decoder_start_token_id]
    if settings.is_multilingual:
        if f"<|{language}|>" not in settings.lang_to_id:
            raise ValueError(f"this Whisper does not know the language {language!r}; it has {len(settings.lang_to_id)}")
        tokens += [settings.lang_to_id[f"<|{language}|>"], settings.task_to_id["transcribe"]]
    return [*tokens, settings.no_timestamps_token_id]


class _TokenTree:
    """Sequences of tokens by their shared prefixes; node 0 is the empty one. `ends`: the last node of each sequence."""

    def __init__(self, sequences: Sequence[Sequence[int]]):
        self.tokens, self.parents = [-1], [0]
        self.children: list[list[int]] = [[]]
        self.ends: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node = 0
            for token in sequence:
                if (node, token) not in known:
                    known[node, token] = len(self.tokens)
                    self.children[node].append(len(self.tokens))
                    self.tokens.append(token)
                    self.parents.append(node)
                    self.children.append([])
                node = known[node, token]
            self.ends.append(node)


def _sum_of_spellings(tree: _TokenTree, ends: list[int], reached: np.ndarray) -> tuple[float, bool]:
    """The log-probability of the spellings with these ends, and whether one of them was reached."""
    followed = [end for end in ends if not np.isnan(reached[end])]
    nodes = set(followed)
    for node in ends if not followed else ():
        while np.isnan(reached[node]):
            node = tree.parents[node]
        nodes.add(node)
    return float(np.logaddexp.reduce(reached[sorted(nodes)])), bool(followed)
