"""`TermRetrievalModel`: clips and terms in one space, where a dot product says how likely a term was spoken.

An audio tower gives frames; an ordered pyramid pools any span of them; one linear layer maps it into the shared
space. A text tower does the same for terms. `forward` runs every tower once, so that distributed training, gradient
accumulation and GradCache see one graph a step.

A saved model is its own weights (heads, phoneme encoder, LoRA, towers that were trained) and the names and digests of
the base towers it stands on; `from_pretrained` resolves those again and refuses others.

Shapes: B clips, S samples, T frames, L encoder layers, H hidden, P spans, W windows, N terms, D embedding.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from qwen_term_retrieval.audio.collate import length_buckets, pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.models.base_weights import build_audio_tower, checked_digest, is_trained, load_strictly
from qwen_term_retrieval.models.checkpoints import load_tensors, resolve_checkpoint
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.models.lora import inject_lora, merge_lora
from qwen_term_retrieval.models.model_card import model_card
from qwen_term_retrieval.models.pooling import pool_pyramid
from qwen_term_retrieval.models.text_tower import HFTextEncoder, build_text_tower
from qwen_term_retrieval.models.windows import window_grid

_MAX_LOGIT_SCALE = 100.0


@dataclass
class TermRetrievalOutput(ModelOutput):
    """What a loss needs: unit vectors of spans and terms, and scale and bias of their logits (scalars with gradient)."""

    audio_PD: torch.Tensor | None = None
    text_ND: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None


class TermRetrievalModel(PreTrainedModel):
    """Audio tower, text tower, and the two heads that join them.

    Example:
        >>> model = TermRetrievalModel(TermRetrievalConfig(audio_tower="openai/whisper-tiny.en"))  # doctest: +SKIP
        >>> scores = model.encode_audio(["clip.wav"]).vectors @ model.encode_terms(["sepsis"]).T   # doctest: +SKIP
    """

    config: TermRetrievalConfig
    config_class = TermRetrievalConfig
    base_model_prefix = "term_retrieval"
    main_input_name = "pcm_BS"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["WhisperEncoderLayer", "Qwen2AudioEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: TermRetrievalConfig):
        super().__init__(config)
        self.audio_tower = build_audio_tower(config)
        self.text_tower = build_text_tower(config.text_tower, config.text_tower_config)
        config.text_tower_config = self.text_tower.settings()
        if config.audio_layers > self.audio_tower.num_layers:
            raise ValueError(f"audio_layers is {config.audio_layers}; the tower has {self.audio_tower.num_layers}")
        if config.audio_layers > 1:
            self.layer_mix = nn.Parameter(torch.zeros(config.audio_layers))
        self.audio_head = nn.Linear(sum(config.segments) * self.audio_tower.hidden_size, config.embedding_dim)
        self.text_head = nn.Linear(self.text_tower.hidden_size, config.embedding_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if config.logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias)))
        self.post_init()
        # After post_init, which would give adapters that begin at zero random weights.
        if config.lora is not None:
            inject_lora(self.audio_tower.encoder, config.lora)
        self._freeze_base_weights()
        self._choose_saved_keys()
        # `from_pretrained` builds on the meta device and loads the base towers when it is done.
        if self.logit_scale.device.type != "meta":
            self._load_base_weights()

    # Base towers and what is saved ----------------------------------------------------------------------------------

    @property
    def _base_encoders(self) -> dict[str, nn.Module]:
        """The encoders that have a pretrained checkpoint, by the name of their tower."""
        encoders: dict[str, nn.Module] = {}
        if isinstance(self.config.audio_tower, str):
            encoders["audio_tower"] = self.audio_tower.encoder
        if isinstance(self.text_tower, HFTextEncoder):
            encoders["text_tower"] = self.text_tower.encoder
        return encoders

    def _freeze_base_weights(self) -> None:
        """What is trained by default: everything but base towers, and of those with LoRA the adapters."""
        frozen = list(self._base_encoders.values())
        if self.config.lora is not None:
            frozen.append(self.audio_tower.encoder)
        for encoder in frozen:
            for name, values in encoder.named_parameters():
                values.requires_grad_("lora_" in name)
        self.audio_tower.encoder.embed_positions.requires_grad_(False)

    def _load_base_weights(self) -> None:
        config = self.config
        for tower, encoder in self._base_encoders.items():
            if getattr(config, f"{tower}_saved"):
                continue
            checkpoint = getattr(config, tower)
            if isinstance(self.text_tower, HFTextEncoder) and tower == "text_tower":
                tensors = self.text_tower.base_tensors()
            else:
                prefixes = self.audio_tower.weight_prefixes
                tensors = load_tensors(resolve_checkpoint(checkpoint, prefixes), prefixes)
            load_strictly(encoder, tensors, checkpoint)
            digest = checked_digest(checkpoint, getattr(config, f"{tower}_sha256"), tensors)
            setattr(config, f"{tower}_sha256", digest)

    def _choose_saved_keys(self) -> None:
        """Base weights are neither written nor missed, unless they were trained.

        `Trainer` compares the missing keys of a checkpoint with `_keys_to_ignore_on_save`: they must be the same names.
        """
        left_out: set[str] = set()
        for tower, encoder in self._base_encoders.items():
            if is_trained(encoder):
                setattr(self.config, f"{tower}_saved", True)
            if not getattr(self.config, f"{tower}_saved"):
                left_out |= {f"{tower}.encoder.{key}" for key in encoder.state_dict() if "lora_" not in key}
        self._keys_to_ignore_on_save = left_out
        self._keys_to_ignore_on_load_missing = {f"^{re.escape(key)}$" for key in left_out}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, from a folder or the Hub, and the base towers it names.

        Base towers come frozen, those that were trained included: `train_audio_tower` goes on training one.

        Raises:
            FileNotFoundError: there is no such folder, nor such a model on a Hub that can be reached.
            CheckpointError: a base tower cannot be had, or is not the one the model was trained on.
            PhonemizerError: the phonemizer is missing, or is not the one the model was trained with.
        """
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, HFValidationError) as error:
            if Path(pretrained_model_name_or_path).is_dir():
                raise
            raise FileNotFoundError(
                f"no model {str(pretrained_model_name_or_path)!r}: it is no folder here, and the Hub did not give it: "
                f"{str(error).splitlines()[0]}"
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers makes new, trainable parameters of those that the checkpoint lacks.
        model._freeze_base_weights()
        model._load_base_weights()
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the config and every parameter that is not an unmodified base tower."""
        self._choose_saved_keys()
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        data: str | None = None,
        recall: Sequence[Mapping[str, Any]] | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model and its card; returns the commit's address.

        Args:
            data, recall: for the card, see `model_card`. Without either, a card that is there already is kept.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if data or recall or not api.file_exists(repo_id, "README.md"):
                card = model_card(self.config, repository=repo_id, data=data, recall=recall)
                Path(folder, "README.md").write_text(card, encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload term retriever",
                revision=revision,
                create_pr=create_pr,
            )
        return commit.commit_url

    # Training -------------------------------------------------------------------------------------------------------

    def train_audio_tower(self, trained: bool = True) -> None:
        """Train all of the audio tower's weights (they are saved with the model from then on), or freeze them."""
        self.audio_tower.encoder.requires_grad_(trained)
        self.audio_tower.encoder.embed_positions.requires_grad_(False)
        self._choose_saved_keys()

    def train_text_tower(self, trained: bool = True) -> None:
        """Train all of the text tower's weights (they are saved with the model from then on), or freeze them."""
        self.text_tower.requires_grad_(trained)
        self._choose_saved_keys()

    def add_logit_bias(self, start: float = -10.0) -> None:
        """Give the model the learned bias that the sigmoid loss needs, unless it has one."""
        if self.config.logit_bias is None:
            self.config.logit_bias = start
            self.logit_bias = nn.Parameter(torch.tensor(start, device=self.logit_scale.device))

    def add_lora(self, r: int = 16, alpha: int = 32, dropout: float = 0.1, **fields: Any) -> None:
        """Freeze the audio tower and add low-rank adapters to its attention and feed-forward layers.

        Raises:
            ValueError: the tower has adapters already.
        """
        if self.config.lora is not None:
            raise ValueError("the audio tower has LoRA adapters already; call merge_lora() first")
        lora = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, **fields}
        inject_lora(self.audio_tower.encoder, lora)
        self.config.lora = lora
        self._choose_saved_keys()

    def merge_lora(self) -> None:
        """Add the adapters into the tower's weights, which are saved with the model from then on."""
        merge_lora(self.audio_tower.encoder)
        self.config.lora = None
        self.config.audio_tower_saved = True
        self._choose_saved_keys()

    def get_input_embeddings(self) -> nn.Module:
        """The audio tower's first layer: where `enable_input_require_grads` begins the graph."""
        return self.audio_tower.encoder.conv1

    # Tensors to embeddings ------------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        """Encoder frames a second."""
        return self.audio_tower.frame_rate

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text inputs of `forward`, on the CPU.

        Raises:
            ValueError: a text is blank.
        """
        for row, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {row} is blank. Drop it.")
        return self.text_tower.tokenize(texts)

    def audio_features(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The audio tower alone: (B, T, H), or (B, L, T, H) for `audio_layers` > 1, and num_frames_B.

        Args:
            pcm_BS: int16, or floats in [-1, 1); 16 kHz; anything behind a clip's end.
            num_samples_B: samples of each clip.

        Raises:
            ValueError: a clip is longer than the tower takes, or too short for one frame.
        """
        return self.audio_tower(pcm_BS, num_samples_B, self.config.audio_layers)

    def pool_spans(
        self,
        features_BTH: torch.Tensor,
        num_frames_B: torch.Tensor,
        clip_index_P: torch.Tensor,
        start_P: torch.Tensor,
        end_P: torch.Tensor,
    ) -> torch.Tensor:
        """Unit vectors (P, D) of spans of frames; see `pool_pyramid` for the edges."""
        if features_BTH.dim() == 4:
            weight_L = self.layer_mix.float().softmax(0)
            features_BTH = torch.einsum("blth,l->bth", features_BTH.float(), weight_L)
        pooled = pool_pyramid(features_BTH, num_frames_B, clip_index_P, start_P, end_P, self.config.segments)
        return F.normalize(self.audio_head(pooled.to(self.audio_head.weight.dtype)).float(), dim=-1)

    def embed_texts(self, **text_inputs: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D) of tokenized texts."""
        pooled_NH = self.text_tower(**text_inputs)
        return F.normalize(self.text_head(pooled_NH.to(self.text_head.weight.dtype)).float(), dim=-1)

    def window_spans(self, num_frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """clip_index_P, start_P, end_P of the config's window grid, on the device of `num_frames_B`."""
        windows = self.config.windows or {}
        grid = window_grid(num_frames_B.tolist(), windows.get("sizes"), windows.get("stride"))
        clip_index_P, start_P, end_P = (values.to(num_frames_B.device) for values in grid)
        return clip_index_P, start_P, end_P

    def forward(
        self,
        pcm_BS: torch.Tensor | None = None,
        num_samples_B: torch.Tensor | None = None,
        features_BTH: torch.Tensor | None = None,
        num_frames_B: torch.Tensor | None = None,
        clip_index_P: torch.Tensor | None = None,
        start_P: torch.Tensor | None = None,
        end_P: torch.Tensor | None = None,
        text_inputs: dict[str, torch.Tensor] | None = None,
    ) -> TermRetrievalOutput:
        """Embed spans of clips and texts, every tower once.

        Args:
            pcm_BS, num_samples_B: audio; or
            features_BTH, num_frames_B: what `audio_features` gave for it.
            clip_index_P, start_P, end_P: spans in encoder frames; the config's window grid where left out.
            text_inputs: what `tokenize` gave for the batch's distinct texts.
        """
        if features_BTH is None:
            if pcm_BS is None or num_samples_B is None:
                raise ValueError("forward needs pcm_BS and num_samples_B, or features_BTH and num_frames_B")
            features_BTH, num_frames_B = self.audio_features(pcm_BS, num_samples_B)
        if num_frames_B is None:
            raise ValueError("features_BTH comes without num_frames_B")
        if clip_index_P is None or start_P is None or end_P is None:
            clip_index_P, start_P, end_P = self.window_spans(num_frames_B)
        return TermRetrievalOutput(
            audio_PD=self.pool_spans(features_BTH, num_frames_B, clip_index_P, start_P, end_P),
            text_ND=self.embed_texts(**text_inputs) if text_inputs is not None else None,
            logit_scale=self.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE),
            # A view, so that a gradient with respect to the output is not one with respect to the parameter.
            logit_bias=None if self.config.logit_bias is None else self.logit_bias.view(()),
        )

    # Users' entries -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout and no graph; whatever mode the model was in comes back."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def encode_audio(self, clips: Sequence[Any], batch_size: int = 16, show_progress: bool = False) -> AudioEmbeddings:
        """Embed every window of every clip.

        Args:
            clips: int16 or float arrays at 16 kHz, `Clip`s, or paths of audio files.
            batch_size: clips at a time.
            show_progress: draw a progress bar.

        Returns:
            Windows of the config's grid, clips in the order given.

        Raises:
            BadAudioError: naming the clip by its path or number.
        """
        if not len(clips):
            raise ValueError("no clips to encode")
        pcm = [clip_pcm(clip, SAMPLING_RATE, name=f"clip {index}") for index, clip in enumerate(clips)]
        rows: list[Any] = [None] * len(pcm)
        with (
            self._evaluating(),
            tqdm(total=len(pcm), desc="encoding clips", unit="clip", disable=not show_progress) as bar,
        ):
            for batch in length_buckets([len(samples) for samples in pcm], batch_size):
                pcm_BS, num_samples_B = pad_pcm([pcm[index] for index in batch])
                features_BTH, num_frames_B = self.audio_features(pcm_BS.to(self.device), num_samples_B)
                clip_index_P, start_P, end_P = self.window_spans(num_frames_B)
                vectors_PD = self.pool_spans(features_BTH, num_frames_B, clip_index_P, start_P, end_P)
                counts = torch.bincount(clip_index_P, minlength=len(batch)).tolist()
                spans_P2 = torch.stack([start_P, end_P], dim=1) / self.frame_rate
                parts = zip(vectors_PD.cpu().split(counts), spans_P2.cpu().split(counts), strict=True)
                for index, part in zip(batch, parts, strict=True):
                    rows[index] = part
                bar.update(len(batch))
        return AudioEmbeddings.from_clips([row[0] for row in rows], [row[1] for row in rows])

    def encode_terms(self, terms: Sequence[str], batch_size: int = 256, show_progress: bool = False) -> torch.Tensor:
        """Unit vectors (N, D) of terms, float32 on the CPU.

        Raises:
            ValueError: a term is blank.
        """
        vectors_ND = torch.empty(len(terms), self.config.embedding_dim)
        with (
            self._evaluating(),
            tqdm(total=len(terms), desc="encoding terms", unit="term", disable=not show_progress) as bar,
        ):
            for batch in length_buckets([len(term) for term in terms], batch_size):
                inputs = self.tokenize([terms[index] for index in batch])
                inputs = {name: values.to(self.device) for name, values in inputs.items()}
                vectors_ND[batch] = self.embed_texts(**inputs).cpu()
                bar.update(len(batch))
        return vectors_ND


AutoModel.register(TermRetrievalConfig, TermRetrievalModel)
