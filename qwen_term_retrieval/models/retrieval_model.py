"""`TermRetrievalModel`: clips and terms in one space, where a dot product says how likely a term was spoken.

An audio tower gives frames; an ordered pyramid pools any span of them; one linear layer maps it into the shared
space. A text tower does the same for terms. `forward` runs every tower once, so that distributed training, gradient
accumulation and GradCache see one graph a step.

Shapes: B clips, S samples, T frames, L encoder layers, H hidden, P spans, W windows, N terms, D embedding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import ModelOutput

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.models.attention_backend import attention_precision, attention_refused_by_name
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.embeddings import AudioEmbeddings, Spans
from qwen_term_retrieval.models.evaluation_mode import evaluation_mode
from qwen_term_retrieval.models.phoneme_head import PhonemeHead
from qwen_term_retrieval.models.pretrained_model import TermRetrievalPreTrainedModel
from qwen_term_retrieval.models.spans.attention_pooling import AttentionPooling
from qwen_term_retrieval.models.spans.pooling import pool_pyramid
from qwen_term_retrieval.models.spans.windows import window_grid
from qwen_term_retrieval.models.text_towers.text_cache import TextCache
from qwen_term_retrieval.models.text_towers.tower import build_text_tower, phonemizers_of
from qwen_term_retrieval.models.weights.base_weights import build_audio_tower
from qwen_term_retrieval.progress import Progress

_MAX_LOGIT_SCALE = 100.0


@dataclass
class TermRetrievalOutput(ModelOutput):
    """What a loss needs: unit vectors of spans and terms, scale and bias of their logits (scalars with gradient).

    Where the phoneme head was asked, what it heard as well: log-probabilities, how many sub-frames of them are each
    clip's, and where it was told what is said, `PhonemeHead.nll` of that.
    """

    audio_PD: torch.Tensor | None = None
    text_ND: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None
    log_probs_BUC: torch.Tensor | None = None
    num_sub_frames_B: torch.Tensor | None = None
    phoneme_nll_B: torch.Tensor | None = None


class TermRetrievalModel(TermRetrievalPreTrainedModel):
    """Audio tower, text tower, and the two heads that join them.

    Example:
        >>> model = TermRetrievalModel(TermRetrievalConfig(audio_tower="openai/whisper-tiny.en"))  # doctest: +SKIP
        >>> scores = model.encode_audio(["clip.wav"]).vectors @ model.encode_terms(["sepsis"]).T   # doctest: +SKIP
    """

    def __init__(self, config: TermRetrievalConfig):
        # "sdpa" is what every tower takes by itself; asking for it would refuse those that lack it.
        requested = config._attn_implementation
        requested = None if requested == "sdpa" else requested
        with attention_refused_by_name(requested, "the model"):
            super().__init__(config)
        self.audio_tower = build_audio_tower(config, requested)
        self.text_tower = build_text_tower(
            config.text_tower, config.text_tower_config, pooling=config.text_pooling, attn_implementation=requested
        )
        config.text_tower_config = self.text_tower.settings()
        if config.audio_layers > self.audio_tower.num_layers:
            raise ValueError(f"audio_layers is {config.audio_layers}; the tower has {self.audio_tower.num_layers}")
        if config.audio_layers > 1:
            self.layer_mix = nn.Parameter(torch.zeros(config.audio_layers))
        if config.pooling == "attention":
            self.audio_pooling = AttentionPooling(self.audio_tower.hidden_size, config.segments)
        self.audio_head = nn.Linear(sum(config.segments) * self.audio_tower.hidden_size, config.embedding_dim)
        self.text_head = nn.Linear(self.text_tower.hidden_size, config.embedding_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if config.logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias)))
        self.phoneme_head: PhonemeHead | None = None
        if config.phoneme_head is not None:
            self.phoneme_head = self._new_phoneme_head(config.phoneme_head)
        self.post_init()
        # After post_init, which would give adapters that begin at zero random weights.
        self._inject_lora()
        self._freeze_base_weights()
        self._choose_saved_keys()
        # `from_pretrained` builds on the meta device and loads the base towers when it is done.
        if self.logit_scale.device.type != "meta":
            self._load_base_weights()

    def add_logit_bias(self, start: float = -10.0) -> None:
        """Give the model the learned bias that the sigmoid loss needs, unless it has one."""
        if self.config.logit_bias is None:
            self.config.logit_bias = start
            self.logit_bias = nn.Parameter(torch.tensor(start, device=self.logit_scale.device))

    def add_phoneme_head(self) -> None:
        """Give the model a head that hears sounds, unless it has one; it pronounces as the text tower does."""
        if self.phoneme_head is None:
            self.phoneme_head = self._new_phoneme_head(phonemizers_of(self.text_tower)).to(self.device, self.dtype)

    def _new_phoneme_head(self, settings: dict[str, Any]) -> PhonemeHead:
        tower = self.audio_tower
        sizes = {"frame_size": tower.hidden_size, "num_layers": self.config.audio_layers}
        head = PhonemeHead(settings, **sizes, frame_rate=tower.frame_rate)
        self.config.phoneme_head = head.settings()
        return head

    def train_phoneme_head(self, *, alone: bool = False) -> None:
        """Train the phoneme head, which is made where there is none; `alone`: and nothing else, adapters included."""
        self.add_phoneme_head()
        if alone:
            self.requires_grad_(False)
        if self.phoneme_head is not None:
            self.phoneme_head.requires_grad_()

    @torch.no_grad()
    def start_logits(
        self, temperature: float | None = None, *, with_bias: bool = False, bias: float | None = None
    ) -> None:
        """Let temperature and bias start from these, or go on as the model has them where they are None.

        Args:
            with_bias: the loss has one: the model gets it, unless it has one.
            bias: where it starts.
        """
        if temperature is not None:
            self.config.temperature = temperature
            self.logit_scale.fill_(math.log(1 / temperature))
        if with_bias:
            self.add_logit_bias()
            if bias is not None:
                self.config.logit_bias = bias
                self.logit_bias.fill_(bias)
        if self.config.logit_bias is not None:
            # What the loss does not use must not wait for a gradient under DDP.
            self.logit_bias.requires_grad_(with_bias)

    # Tensors to embeddings ------------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        """Encoder frames a second."""
        return self.audio_tower.frame_rate

    def tokenize(self, texts: Sequence[str], languages: Sequence[str | None] | None = None) -> dict[str, torch.Tensor]:
        """Text inputs of `forward`, on the CPU.

        Args:
            texts: terms or chunk texts.
            languages: the code of each one's language, None where it is not known. They are ignored by a text tower
                that reads all languages alike: a pretrained encoder, a phoneme encoder without `languages`.

        Raises:
            ValueError: a text is blank, or its language has no phonemizer in a text tower that has several.
        """
        for row, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {row} is blank. Drop it.")
        return self.text_tower.tokenize(texts, languages)

    def audio_frames(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The audio tower alone: (B, T, H), or (B, L, T, H) for `audio_layers` > 1, and num_frames_B.

        Args:
            pcm_BS: int16, or floats in [-1, 1); 16 kHz; anything behind a clip's end.
            num_samples_B: samples of each clip.

        Raises:
            ValueError: a clip is longer than the tower takes, or too short for one frame.
        """
        with attention_precision(self.config._attn_implementation, self.device, self.dtype):
            return self.audio_tower(pcm_BS, num_samples_B, self.config.audio_layers)

    def pool_spans(
        self,
        frames_BTH: torch.Tensor,
        num_frames_B: torch.Tensor,
        clip_index_P: torch.Tensor,
        start_P: torch.Tensor,
        end_P: torch.Tensor,
    ) -> torch.Tensor:
        """Unit vectors (P, D) of spans of frames; see `pool_pyramid` for the edges."""
        if frames_BTH.dim() == 4:
            weight_L = self.layer_mix.float().softmax(0)
            frames_BTH = torch.einsum("blth,l->bth", frames_BTH.float(), weight_L)
        spans = (num_frames_B, clip_index_P, start_P, end_P)
        if self.config.pooling == "attention":
            pooled = self.audio_pooling(frames_BTH, *spans)
        else:
            pooled = pool_pyramid(frames_BTH, *spans, self.config.segments)
        return F.normalize(self.audio_head(pooled.to(self.audio_head.weight.dtype)).float(), dim=-1)

    def embed_texts(self, **text_inputs: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D) of tokenized texts."""
        with attention_precision(self.config._attn_implementation, self.device, self.dtype):
            pooled_NH = self.text_tower(**text_inputs)
        return F.normalize(self.text_head(pooled_NH.to(self.text_head.weight.dtype)).float(), dim=-1)

    def window_spans(self, num_frames_B: torch.Tensor) -> Spans:
        """The config's window grid, on the device of `num_frames_B`."""
        windows = self.config.windows or {}
        grid = window_grid(num_frames_B.tolist(), windows.get("sizes"), windows.get("stride"))
        return grid.to(num_frames_B.device)

    def forward(
        self,
        pcm_BS: torch.Tensor | None = None,
        num_samples_B: torch.Tensor | None = None,
        frames_BTH: torch.Tensor | None = None,
        num_frames_B: torch.Tensor | None = None,
        clip_index_P: torch.Tensor | None = None,
        start_P: torch.Tensor | None = None,
        end_P: torch.Tensor | None = None,
        text_inputs: dict[str, torch.Tensor] | None = None,
        phonemes_BP: torch.Tensor | None = None,
        num_phonemes_B: torch.Tensor | None = None,
        with_phonemes: bool = False,
    ) -> TermRetrievalOutput:
        """Embed spans of clips and texts, every tower once.

        Args:
            pcm_BS, num_samples_B: audio; or
            frames_BTH, num_frames_B: what `audio_frames` gave for it.
            clip_index_P, start_P, end_P: spans in encoder frames; the config's window grid where left out.
            text_inputs: what `tokenize` gave for the batch's distinct texts.
            phonemes_BP, num_phonemes_B: what is said in each clip, as classes of the phoneme head, 0 of them where it
                is not known; the phoneme head is trained with it.
            with_phonemes: ask the phoneme head, if the model has one, without knowing what is said.
        """
        if frames_BTH is None:
            if pcm_BS is None or num_samples_B is None:
                raise ValueError("forward needs pcm_BS and num_samples_B, or frames_BTH and num_frames_B")
            frames_BTH, num_frames_B = self.audio_frames(pcm_BS, num_samples_B)
        if num_frames_B is None:
            raise ValueError("frames_BTH comes without num_frames_B")
        if clip_index_P is None or start_P is None or end_P is None:
            clip_index_P, start_P, end_P = self.window_spans(num_frames_B)
        heard: dict[str, torch.Tensor] = {}
        if self.phoneme_head is not None and (with_phonemes or phonemes_BP is not None):
            log_probs_BUC, num_B = self.phoneme_head(frames_BTH, num_frames_B)
            heard = {"log_probs_BUC": log_probs_BUC, "num_sub_frames_B": num_B}
            if phonemes_BP is not None and num_phonemes_B is not None:
                heard["phoneme_nll_B"] = self.phoneme_head.nll(log_probs_BUC, num_B, phonemes_BP, num_phonemes_B)
        return TermRetrievalOutput(
            audio_PD=self.pool_spans(frames_BTH, num_frames_B, clip_index_P, start_P, end_P),
            text_ND=self.embed_texts(**text_inputs) if text_inputs is not None else None,
            logit_scale=self.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE),
            logit_bias=None if self.config.logit_bias is None else self.logit_bias,
            **heard,
        )

    # Users' entries -------------------------------------------------------------------------------------------------

    def embed_spans(
        self, audio_inputs: Mapping[str, torch.Tensor], spans: Spans, *, as_trained: bool = False
    ) -> torch.Tensor:
        """Unit vectors (P, D) of spans as a search sees them, without dropout and graph; see `_hear`."""
        heard: Any = self._hear(audio_inputs, spans, as_trained=as_trained)
        return heard.audio_PD

    def _hear(
        self, audio_inputs: Mapping[str, torch.Tensor], spans: Spans, *, as_trained: bool, with_phonemes: bool = False
    ) -> TermRetrievalOutput:
        """One pass of `forward` over clips as a search sees them, without dropout and graph.

        Args:
            audio_inputs: of `forward`: `pcm_BS` and `num_samples_B`, or `frames_BTH` and `num_frames_B`; on any device.
            spans: on any device.
            as_trained: in the precision that a trainer computes in, not in the model's own.
        """
        inputs = {name: values.to(self.device) for name, values in audio_inputs.items()}
        # accelerate 1.15 puts a `forward` with autocast into a model that it trains, and leaves it there.
        forward: Any = self if as_trained else functools.partial(type(self).forward, self)
        with evaluation_mode(self):
            return forward(**inputs, **spans.to(self.device)._asdict(), with_phonemes=with_phonemes)

    def embed_windows(
        self,
        audio_inputs: Mapping[str, torch.Tensor],
        num_frames_B: torch.Tensor,
        spans: Spans | None = None,
        first_frame_B: torch.Tensor | None = None,
        *,
        as_trained: bool = False,
        with_phonemes: bool = False,
    ) -> AudioEmbeddings:
        """The windows of a batch, vectors on the model's device: the one way from audio to windows.

        Args:
            audio_inputs, as_trained: see `embed_spans`.
            with_phonemes: give what the phoneme head hears as well, if the model has one.
            num_frames_B: encoder frames of each clip, on the CPU.
            spans: clip by clip, on the CPU; the config's window grid where left out.
            first_frame_B: where each clip begins in its recording; the windows' seconds count from there.
        """
        spans = self.window_spans(num_frames_B) if spans is None else spans
        heard: Any = self._hear(audio_inputs, spans, as_trained=as_trained, with_phonemes=with_phonemes)
        counts = torch.bincount(spans.clip_index_P, minlength=len(num_frames_B)).tolist()
        edges_P2 = torch.stack([spans.start_P, spans.end_P], dim=1)
        if first_frame_B is not None:
            edges_P2 = edges_P2 + first_frame_B[spans.clip_index_P, None]
        windows = AudioEmbeddings.from_clips(heard.audio_PD.split(counts), (edges_P2 / self.frame_rate).split(counts))
        if heard.log_probs_BUC is None:
            return windows
        return replace(windows, log_probs=heard.log_probs_BUC, num_sub_frames=heard.num_sub_frames_B)

    def encode_audio(self, clips: Sequence[Any], batch_size: int = 16, show_progress: bool = False) -> AudioEmbeddings:
        """Embed every window of every clip.

        Args:
            clips: int16 or float arrays at 16 kHz, `Clip`s, or paths of audio files.
            batch_size: clips at a time.
            show_progress: draw a progress bar.

        Returns:
            Windows of the config's grid, clips in the order given.

        Raises:
            BadAudioError: a clip cannot be heard; named by its path or number.
            ValueError: one is longer than the audio tower takes, or too short for one frame; or there are none.
        """
        if not len(clips):
            raise ValueError("no clips to encode")
        names = [str(clip) if isinstance(clip, str | Path) else f"clip {index}" for index, clip in enumerate(clips)]
        pcm = [clip_pcm(clip, SAMPLING_RATE, name=name) for clip, name in zip(clips, names, strict=True)]
        self.audio_tower.check_lengths(torch.tensor([len(samples) for samples in pcm]), names)
        vectors: list[Any] = [None] * len(pcm)
        spans: list[Any] = [None] * len(pcm)
        with Progress(total=len(pcm), desc="encoding clips", unit="clip", shown=show_progress) as bar:
            for batch in length_buckets([len(samples) for samples in pcm], batch_size):
                pcm_BS, num_samples_B = pad_pcm([pcm[index] for index in batch])
                num_frames_B = self.audio_tower.num_frames(num_samples_B)
                found = self.embed_windows({"pcm_BS": pcm_BS, "num_samples_B": num_samples_B}, num_frames_B)
                for row, index in enumerate(batch):
                    vectors[index] = found.vectors[row, : found.mask[row].sum()].cpu()
                    spans[index] = found.spans[row, : found.mask[row].sum()]
                bar.update(len(batch))
        return AudioEmbeddings.from_clips(vectors, spans)

    def encode_terms(
        self,
        terms: Sequence[str],
        batch_size: int = 256,
        show_progress: bool = False,
        languages: Sequence[str | None] | None = None,
    ) -> torch.Tensor:
        """Unit vectors (N, D) of terms, float32 on the CPU.

        Args:
            terms: texts.
            batch_size: terms at a time.
            show_progress: draw a progress bar.
            languages: of the terms, see `tokenize`.

        Raises:
            ValueError: a term is blank, or its language has no phonemizer.
        """
        vectors_ND = torch.empty(len(terms), self.config.embedding_dim)
        with (
            evaluation_mode(self),
            Progress(
                total=len(terms),
                desc="encoding terms",
                unit="term",
                shown=show_progress,
                leave=None,
            ) as bar,
        ):
            for batch in length_buckets([len(term) for term in terms], batch_size):
                of_batch = [languages[index] for index in batch] if languages is not None else None
                inputs = self.tokenize([terms[index] for index in batch], of_batch)
                inputs = {name: values.to(self.device) for name, values in inputs.items()}
                vectors_ND[batch] = self.embed_texts(**inputs).cpu()
                bar.update(len(batch))
        return vectors_ND

    @property
    def has_frozen_text_encoder(self) -> bool:
        """Whether the text tower has a pretrained encoder of which nothing is trained."""
        return self._text_encoder is not None and self._text_encoder.is_frozen

    def cache_texts(self, texts: Sequence[str], batch_size: int = 256, show_progress: bool = False) -> None:
        """Compute what the frozen text encoder gives for these texts, once; `tokenize` gives it out from then on.

        A batch is served from the cache where all of its texts are there. The vectors have the encoder's own precision,
        float32 by default: under autocast an encoder without cache rounds more. Training or adapting the text tower
        drops the cache. It takes 4 · N · H bytes of memory, see `TextCache`.

        Args:
            texts: the training glossary and chunk texts; others are tokenized and encoded as before.
            batch_size: texts at a time.
            show_progress: draw a progress bar.

        Raises:
            ValueError: the text tower has no pretrained encoder, or it is being trained.
        """
        tower = self._text_encoder
        if tower is None:
            raise ValueError(f"the text tower {self.config.text_tower!r} has no pretrained encoder: nothing to cache")
        if not tower.is_frozen:
            raise ValueError("the text encoder is being trained, so its vectors change: train without a cache")
        tower.cache = None
        texts = list(dict.fromkeys(texts))
        pooled_NH = torch.empty(len(texts), tower.hidden_size)
        with (
            evaluation_mode(self),
            Progress(total=len(texts), desc="encoding texts", unit="text", shown=show_progress) as bar,
        ):
            for batch in length_buckets([len(text) for text in texts], batch_size):
                inputs = tower.tokenize([texts[index] for index in batch])
                inputs = {name: values.to(self.device) for name, values in inputs.items()}
                pooled_NH[batch] = tower(**inputs).float().cpu()
                bar.update(len(batch))
        tower.cache = TextCache(texts, pooled_NH)

    def export_sentence_transformers(self, path: str | Path) -> None:
        """Write a folder that `SentenceTransformer(path, trust_remote_code=True)` opens; see `TermRetrievalModule`.

        Raises:
            ImportError: sentence-transformers is not installed.
            FileExistsError: there is something in the folder already.
        """
        try:
            from qwen_term_retrieval.models.sentence_transformers_module import write_sentence_transformers
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'sentence-transformers>=6'") from error
        write_sentence_transformers(self, path)


AutoModel.register(TermRetrievalConfig, TermRetrievalModel)
