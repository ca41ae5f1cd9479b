"""A CTranslate2 Whisper model, turned into a Hugging Face checkpoint folder.

CTranslate2 keeps Whisper's weights in one `model.bin`: a header, then named tensors, with query, key and value fused
into one matrix. Undoing the fusion gives the original tensors back (in the precision that they were stored with);
sizes are read off the tensors, special tokens off the tokenizer, so that nothing about the model is guessed.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_HEAD_SIZE = 64
_MAX_FRAMES = 1500
_MAX_TOKENS = 448
_END = "<|endoftext|>"


class _Reader:
    """Little-endian fields off a byte string."""

    def __init__(self, content: bytes):
        self.content = content
        self.offset = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.content, self.offset)
        self.offset += struct.calcsize(code)
        return value

    def name(self) -> str:
        length = self.number("H")
        value = self.content[self.offset : self.offset + length]
        self.offset += length
        return value.rstrip(b"\0").decode()

    def tensor(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(_DTYPES[self.number("B")])
        num_bytes = self.number("I")
        if self.offset + num_bytes > len(self.content):
            raise struct.error("a tensor reaches past the end")
        values = np.frombuffer(self.content, dtype, num_bytes // dtype.itemsize, self.offset).reshape(shape)
        self.offset += num_bytes
        return values


def read_ct2_tensors(content: bytes) -> dict[str, np.ndarray]:
    """All tensors of a CTranslate2 `model.bin` (format version 3 and later).

    Raises:
        ValueError: the bytes are not such a file, or are cut short.
    """
    reader = _Reader(content)
    try:
        version = reader.number("I")
        if version < 3:
            raise ValueError(f"CTranslate2 format version {version}; versions from 3 on are supported")
        specification = reader.name()
        if specification != "WhisperSpec":
            raise ValueError(f"a CTranslate2 model of kind {specification!r}, not a Whisper model")
        reader.number("I")
        tensors = {}
        for _ in range(reader.number("I")):
            name = reader.name()
            tensors[name] = reader.tensor()
        for _ in range(reader.number("I")):
            alias = reader.name()
            tensors[alias] = tensors[reader.name()]
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"not a CTranslate2 model file, or cut short at byte {reader.offset}") from error
    if reader.offset != len(content):
        raise ValueError(f"{len(content) - reader.offset} bytes are left over at the end of the CTranslate2 file")
    return tensors


def whisper_state_dict(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """`WhisperForConditionalGeneration`'s tensors in float32, named as its checkpoints name them."""
    state: dict[str, torch.Tensor] = {}

    def put(target: str, *values: np.ndarray) -> None:
        for suffix, value in zip((".weight", ".bias"), values, strict=False):
            state[f"model.{target}{suffix}"] = torch.from_numpy(np.array(value, dtype=np.float32))

    def linear(source: str) -> tuple[np.ndarray, np.ndarray]:
        return tensors[f"{source}/weight"], tensors[f"{source}/bias"]

    def norm(source: str) -> tuple[np.ndarray, np.ndarray]:
        return tensors[f"{source}/gamma"], tensors[f"{source}/beta"]

    def fused(source: str, target: str, parts: str) -> None:
        weight, bias = linear(source)
        names = zip(parts, np.split(weight, len(parts)), np.split(bias, len(parts)), strict=True)
        for part, part_weight, part_bias in names:
            # Whisper's keys have no bias; CTranslate2 stores zeros for it.
            if part == "k" and part_bias.any():
                raise ValueError(f"{source}: the key projection has a bias, so this is not a Whisper model")
            put(f"{target}.{part}_proj", *((part_weight,) if part == "k" else (part_weight, part_bias)))

    for conv in ("conv1", "conv2"):
        put(f"encoder.{conv}", *linear(f"encoder/{conv}"))
    put("decoder.embed_tokens", tensors["decoder/embeddings/weight"])
    for side in ("encoder", "decoder"):
        put(f"{side}.embed_positions", tensors[f"{side}/position_encodings/encodings"])
        put(f"{side}.layer_norm", *norm(f"{side}/layer_norm"))
        for index in range(num_layers(tensors, side)):
            source, target = f"{side}/layer_{index}", f"{side}.layers.{index}"
            fused(f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv")
            put(f"{target}.self_attn.out_proj", *linear(f"{source}/self_attention/linear_1"))
            put(f"{target}.self_attn_layer_norm", *norm(f"{source}/self_attention/layer_norm"))
            put(f"{target}.fc1", *linear(f"{source}/ffn/linear_0"))
            put(f"{target}.fc2", *linear(f"{source}/ffn/linear_1"))
            put(f"{target}.final_layer_norm", *norm(f"{source}/ffn/layer_norm"))
            if side == "decoder":
                put(f"{target}.encoder_attn.q_proj", *linear(f"{source}/attention/linear_0"))
                fused(f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv")
                put(f"{target}.encoder_attn.out_proj", *linear(f"{source}/attention/linear_2"))
                put(f"{target}.encoder_attn_layer_norm", *norm(f"{source}/attention/layer_norm"))
    return state


def num_layers(tensors: dict[str, np.ndarray], side: str) -> int:
    names = {name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_")}
    return len(names - {"layer_norm"})


def write_hf_whisper(weights: bytes, ct2_config: Path, tokenizer_json: Path, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` (float32), tokenizer, feature extractor and generation config.

    Raises:
        ValueError: the weights are not a whole CTranslate2 Whisper model.
    """
    tensors = read_ct2_tensors(weights)
    state = whisper_state_dict(tensors)
    added = Tokenizer.from_file(str(tokenizer_json)).get_added_tokens_decoder()
    tokens = {token.content: index for index, token in added.items()}
    vocab_size, d_model = state["model.decoder.embed_tokens.weight"].shape
    num_mel_bins = state["model.encoder.conv1.weight"].shape[1]
    shared: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokens[_END])
    shared["decoder_start_token_id"] = tokens["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=num_mel_bins,
        d_model=d_model,
        encoder_layers=num_layers(tensors, "encoder"),
        decoder_layers=num_layers(tensors, "decoder"),
        encoder_attention_heads=d_model // _HEAD_SIZE,
        decoder_attention_heads=d_model // _HEAD_SIZE,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=_MAX_FRAMES,
        max_target_positions=_MAX_TOKENS,
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
        **shared,
    )
    config.save_pretrained(folder)
    generation = _generation_fields(json.loads(ct2_config.read_bytes()), tokens)
    GenerationConfig(**shared, **generation).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=num_mel_bins).save_pretrained(folder)
    shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), _END)
    settings = {"tokenizer_class": "WhisperTokenizer", **ends, "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _generation_fields(ct2_config: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """What `generate` needs to know. An English-only model has neither languages nor tasks to choose."""
    # In the vocabulary of the English models the end of text comes one earlier.
    is_multilingual = tokens[_END] == 50257
    fields: dict[str, Any] = {
        "is_multilingual": is_multilingual,
        "suppress_tokens": sorted({token for token in ct2_config["suppress_ids"] if token >= 0}),
        "begin_suppress_tokens": ct2_config["suppress_ids_begin"],
        "alignment_heads": ct2_config["alignment_heads"],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": _MAX_TOKENS,
        "return_timestamps": False,
    }
    if is_multilingual:
        languages = set(ct2_config["lang_ids"])
        fields["lang_to_id"] = {token: index for token, index in tokens.items() if index in languages}
        fields["task_to_id"] = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return fields
