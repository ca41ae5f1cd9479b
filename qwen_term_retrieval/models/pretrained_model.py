"""Which weights of a retriever are trained, which are saved, and where the others come from.

A retriever stands on pretrained towers. A saved one is its own weights (heads, phoneme encoder, LoRA, towers that were
trained) and the names and digests of the base towers; `from_pretrained` resolves those again and refuses others. So a
checkpoint of a model on a 7B tower has a few megabytes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import PreTrainedModel

from qwen_term_retrieval.models.audio_towers import AudioTower
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.lora import TEXT_TARGETS, fold_lora, inject_lora, merge_lora, unfold_lora
from qwen_term_retrieval.models.model_card import model_card
from qwen_term_retrieval.models.text_towers.text_encoder import HFTextEncoder
from qwen_term_retrieval.models.text_towers.tower import TextTower, pretrained_text_encoder
from qwen_term_retrieval.models.weights.base_weights import checked_digest, is_trained, load_strictly
from qwen_term_retrieval.models.weights.checkpoints import load_tensors, resolve_checkpoint
from qwen_term_retrieval.models.weights.model_names import check_model_name
from qwen_term_retrieval.models.weights.shipped import model_place


class TermRetrievalPreTrainedModel(PreTrainedModel):
    """Training, saving and loading of `TermRetrievalModel`, apart from what it computes."""

    config: TermRetrievalConfig
    config_class = TermRetrievalConfig
    base_model_prefix = "term_retrieval"
    main_input_name = "pcm_BS"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = [  # noqa: RUF012
        "WhisperEncoderLayer",
        "Qwen2AudioEncoderLayer",
        "Qwen3OmniMoeAudioEncoderLayer",
        "Qwen3ASRAudioEncoderLayer",
        "ParakeetEncoderBlock",
        "Wav2Vec2BertEncoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
    ]

    audio_tower: AudioTower
    text_tower: TextTower

    # Base towers ----------------------------------------------------------------------------------------------------

    @property
    def _text_encoder(self) -> HFTextEncoder | None:
        """The part of the text tower that has a pretrained checkpoint."""
        found = pretrained_text_encoder(self.text_tower)
        return found[1] if found else None

    @property
    def _base_encoders(self) -> dict[str, tuple[str, nn.Module]]:
        """The encoders that have a pretrained checkpoint, by their tower: their name within the model, and they."""
        encoders: dict[str, tuple[str, nn.Module]] = {}
        if isinstance(self.config.audio_tower, str):
            encoders["audio_tower"] = ("audio_tower.encoder", self.audio_tower.encoder)
        text_encoder = pretrained_text_encoder(self.text_tower)
        if text_encoder is not None:
            place, module = text_encoder
            encoders["text_tower"] = (".".join(filter(None, ["text_tower", place, "encoder"])), module.encoder)
        return encoders

    def _inject_lora(self) -> None:
        if self.config.lora is not None:
            inject_lora(self.audio_tower.encoder, self.config.lora, self.audio_tower.lora_targets)
        if self.config.text_lora is not None:
            inject_lora(self._lora_encoder("text"), self.config.text_lora, TEXT_TARGETS)

    def _lora_encoder(self, tower: str) -> nn.Module:
        if tower == "audio":
            return self.audio_tower.encoder
        if self._text_encoder is None:
            raise ValueError(f"the text tower {self.config.text_tower!r} has no pretrained encoder to adapt")
        return self._text_encoder.encoder

    def _freeze_base_weights(self) -> None:
        """What is trained by default: everything but base towers, and of those with LoRA the adapters."""
        frozen = [encoder for _, encoder in self._base_encoders.values()]
        if self.config.lora is not None:
            frozen.append(self.audio_tower.encoder)
        for encoder in frozen:
            for name, values in encoder.named_parameters():
                values.requires_grad_("lora_" in name)
        self._freeze_what_is_never_trained()

    def _freeze_what_is_never_trained(self) -> None:
        for name, values in self.audio_tower.encoder.named_parameters():
            if name.startswith(self.audio_tower.never_trained):
                values.requires_grad_(False)

    def _load_base_weights(self) -> None:
        config, text_encoder = self.config, self._text_encoder
        for tower, (_, encoder) in self._base_encoders.items():
            if getattr(config, f"{tower}_saved"):
                continue
            if tower == "text_tower" and text_encoder is not None:
                checkpoint, tensors = text_encoder.checkpoint, text_encoder.base_tensors()
            else:
                checkpoint, prefixes = str(config.audio_tower), self.audio_tower.weight_prefixes
                tensors = load_tensors(resolve_checkpoint(checkpoint, prefixes), prefixes)
            load_strictly(encoder, tensors, checkpoint)
            digest = checked_digest(checkpoint, getattr(config, f"{tower}_sha256"), tensors)
            setattr(config, f"{tower}_sha256", digest)

    # Training -------------------------------------------------------------------------------------------------------

    def train_audio_tower(self, trained: bool = True) -> None:
        """Train all of the audio tower's weights (they are saved with the model from then on), or freeze them."""
        self._unfold_lora()
        self.audio_tower.encoder.requires_grad_(trained)
        self._freeze_what_is_never_trained()
        self._choose_saved_keys()

    def train_text_tower(self, trained: bool = True) -> None:
        """Train all of the text tower's weights (they are saved with the model from then on), or freeze them."""
        self._unfold_lora()
        self.text_tower.requires_grad_(trained)
        self._forget_texts()
        self._choose_saved_keys()

    def _forget_texts(self) -> None:
        """Vectors of a text encoder that is about to change are of no use."""
        if self._text_encoder is not None:
            self._text_encoder.cache = None

    def add_lora(
        self,
        r: int = 16,
        alpha: int = 32,
        dropout: float = 0.1,
        tower: Literal["audio", "text"] = "audio",
        **fields: Any,
    ) -> None:
        """Freeze a tower's encoder and add low-rank adapters to its attention and feed-forward layers.

        Args:
            r, alpha, dropout: rank, scale and dropout of the adapters.
            tower: which; call it twice for both.
            fields: further ones of `peft.LoraConfig`, such as `target_modules`.

        Raises:
            ValueError: the tower has adapters already, or is no pretrained encoder.
        """
        setting = "lora" if tower == "audio" else "text_lora"
        if getattr(self.config, setting) is not None:
            raise ValueError(f"the {tower} tower has LoRA adapters already; call merge_lora() first")
        encoder = self._lora_encoder(tower)
        # Sets, which peft takes too, are no JSON.
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
        lora = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, **fields}
        inject_lora(encoder, lora, self.audio_tower.lora_targets if tower == "audio" else TEXT_TARGETS)
        encoder.train(encoder.training)  # adapters come in training mode
        setattr(self.config, setting, lora)
        if tower == "text":
            self._forget_texts()
        self._choose_saved_keys()

    def merge_lora(self) -> None:
        """Add the adapters of all towers into their weights, which are saved with the model from then on.

        Raises:
            ValueError: there are none.
        """
        if not self._adapted_towers:
            raise ValueError("the model has no LoRA adapters to merge")
        for tower in self._adapted_towers:
            merge_lora(self._lora_encoder(tower))
            setattr(self.config, "lora" if tower == "audio" else "text_lora", None)
            setattr(self.config, f"{tower}_tower_saved", True)
        self._choose_saved_keys()

    @property
    def _adapted_towers(self) -> list[str]:
        return [tower for tower, lora in (("audio", self.config.lora), ("text", self.config.text_lora)) if lora]

    def fold_lora(self) -> None:
        """Spare a search the cost of adapters: add them into the weights in memory, until the model is trained again.

        What is saved stays the same. A tower whose own weights are saved too is left as it is, and so is a model in
        half precision, which would round the sum: fold last, after `to(dtype)`.
        """
        for tower in self._adapted_towers:
            saved = f"{tower}_tower" not in self._base_encoders or getattr(self.config, f"{tower}_tower_saved")
            if self.dtype == torch.float32 and not saved:
                fold_lora(self._lora_encoder(tower))

    def own_state(self) -> dict[str, torch.Tensor]:
        """The weights that are saved: all but those of base towers that were not trained."""
        self._choose_saved_keys()
        left_out = self._keys_to_ignore_on_save or set()
        return {name: values for name, values in self.state_dict().items() if name not in left_out}

    def train(self, mode: bool = True) -> Any:
        """Training or inference mode, as of any module; training takes folded adapters out of the weights again."""
        if mode:
            self._unfold_lora()
        return super().train(mode)

    def _unfold_lora(self) -> None:
        for tower in self._adapted_towers:
            unfold_lora(self._lora_encoder(tower))

    def get_input_embeddings(self) -> nn.Module:
        """The audio tower's first layer: where `enable_input_require_grads` begins the graph."""
        return self.audio_tower.input_layer

    # Saving and loading ---------------------------------------------------------------------------------------------

    def _choose_saved_keys(self) -> None:
        """Base weights are neither written nor missed, unless they were trained.

        `Trainer` compares the missing keys of a checkpoint with `_keys_to_ignore_on_save`: they must be the same names.
        """
        left_out: set[str] = set()
        for tower, (place, encoder) in self._base_encoders.items():
            if is_trained(encoder):
                setattr(self.config, f"{tower}_saved", True)
            if not getattr(self.config, f"{tower}_saved"):
                left_out |= {f"{place}.{key}" for key in encoder.state_dict() if "lora_" not in key}
        self._keys_to_ignore_on_save = left_out
        self._keys_to_ignore_on_load_missing = {f"^{re.escape(key)}$" for key in left_out}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, by folder, Hub id or the name of one that came along, and the base towers it names.

        Base towers come frozen, those that were trained included: `train_audio_tower` goes on training one.

        Raises:
            FileNotFoundError: there is no such folder, nor such a model on a Hub that can be reached.
            CheckpointError: a base tower cannot be had, or is not the one the model was trained on.
            PhonemizerError: the phonemizer is missing, or is not the one the model was trained with.
        """
        place = model_place(pretrained_model_name_or_path)
        check_model_name(place, kwargs.get("revision"))
        try:
            loaded = super().from_pretrained(place, *args, **kwargs)
        except (OSError, HFValidationError) as error:
            name, revision = str(place), kwargs.get("revision")
            if Path(name).is_dir():
                if type(error) is not OSError:  # not one of transformers
                    raise
                raise FileNotFoundError(f"{name} holds no model: {str(error).splitlines()[0]}") from error
            at = f" at revision {revision!r}" if revision else ""
            raise FileNotFoundError(
                f"no model {name!r}{at}: it is no folder here, and the Hub did not give it: "
                f"{str(error).splitlines()[0]}" + (f" `qtr models {name}` lists the revisions." if revision else "")
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers makes new, trainable parameters of those that the checkpoint lacks.
        model._freeze_base_weights()
        model._load_base_weights()
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        """Save the config and every parameter that is not an unmodified base tower.

        Args:
            dtype: of the weights on disk, float16 for half the size; they are loaded in the model's own precision.
        """
        self._choose_saved_keys()
        if dtype is not None:
            state = self.state_dict() if kwargs.get("state_dict") is None else kwargs["state_dict"]
            kwargs["state_dict"] = {
                name: values.to(dtype) if values.is_floating_point() else values for name, values in state.items()
            }
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
