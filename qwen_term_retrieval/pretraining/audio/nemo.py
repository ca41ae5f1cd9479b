"""NeMo's NEST checkpoints, read and written: `.nemo`, a tar file of settings in YAML and of weights.

`ParakeetEncoder` is NeMo's Fast Conformer under other names, so the weights are renamed and nothing is computed: the
encoder has the same bits after both ways. Codes are float64 there and float32 here; a token differs where two codes are
nearer to each other than float32 can tell. What NeMo's spectrogram keeps is not read: ours needs no weights.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from qwen_term_retrieval.models.audio_towers.mel import slaney_filters
from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of

logger = logging.getLogger(__name__)

CLASSES = ("EncDecDenoiseMaskedTokenPredModel", "EncDecMaskedTokenPredModel")
_SETTINGS, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_MODULE, _MODULES = "nemo.collections.asr.models.ssl_models", "nemo.collections.asr.modules"
# Parts of names, NeMo's and ours.
_NAMES = (
    ("encoder.pre_encode.conv.", "encoder.subsampling.layers."),
    ("encoder.pre_encode.out.", "encoder.subsampling.linear."),
    (".conv.batch_norm.", ".conv.norm."),
    (".self_attn.linear_q.", ".self_attn.q_proj."),
    (".self_attn.linear_k.", ".self_attn.k_proj."),
    (".self_attn.linear_v.", ".self_attn.v_proj."),
    (".self_attn.linear_out.", ".self_attn.o_proj."),
    (".self_attn.linear_pos.", ".self_attn.relative_k_proj."),
    (".self_attn.pos_bias_u", ".self_attn.bias_u"),
    (".self_attn.pos_bias_v", ".self_attn.bias_v"),
    ("decoder.decoder_layers.0.", "head."),
    ("quantizer.proj.weight", "quantizer.projection"),
    ("quantizer.codebooks", "quantizer.codes_HCK"),
    ("mask_processor.mask_embedding", "fill"),
)
# What an encoder of ours can be; other values of NeMo's mean another one.
_ENCODER = {
    "subsampling": "dw_striding", "self_attention_model": "rel_pos", "conv_norm_type": "batch_norm",
    "causal_downsampling": False, "att_context_size": [-1, -1], "conv_context_size": None, "untie_biases": True,
}  # fmt: skip


def convert_nemo(source: str | Path, target: str | Path, *, overwrite: bool = False) -> Path:
    """Write a `.nemo` file as a folder of a model, or such a folder (or a Hub id) as a `.nemo` file; gives `target`.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: `target` is there.
        ValueError: the file is no NEST checkpoint, or the model has what NeMo lacks; says which, and the remedy.

    Example:
        >>> convert_nemo("nest.nemo", "outputs/nest")                                            # doctest: +SKIP
        >>> convert_nemo("outputs/nest", "nest.nemo")                                            # doctest: +SKIP
    """
    target = Path(target).absolute()
    if str(source).endswith(".nemo") == target.name.endswith(".nemo"):
        raise ValueError(f"one of {source} and {target.name} must be a .nemo file, and the other a folder")
    if not target.name.endswith(".nemo"):
        check_free(target, "a model", "config.json", overwrite=overwrite)
        model = read_nemo(source)
        with staging_of(target) as staging:
            model.save_pretrained(staging / "model")
            publish(staging / "model", target)
        return target
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; pass overwrite=True to replace it")
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no config.json, so it is no model")
    write_nemo(NestForPreTraining.from_pretrained(source), target)
    return target


def read_nemo(file: str | Path) -> NestForPreTraining:
    """The model of a `.nemo` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no NEST checkpoint.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    settings, weights = _unpacked(file)
    model = NestForPreTraining(config_of_nemo(settings, str(file)))
    state = {our_name(name): values for name, values in weights.items() if not name.startswith("preprocessor.")}
    own = model.state_dict()
    if "head.bias" not in state:
        state["head.bias"] = torch.zeros_like(own["head.bias"])
    if "head.weight" in state:
        state["head.weight"] = state["head.weight"].squeeze(-1)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{file}: its weights do not fit its settings: missing {missing[:3]}, unexpected {unexpected[:3]}, of "
            f"another shape {sorted(misshapen)[:3]}. Save it anew with NeMo 3"
        )
    model.load_state_dict(state)
    return model.eval()


def write_nemo(model: NestForPreTraining, file: str | Path) -> None:
    """Write a model as `EncDecDenoiseMaskedTokenPredModel` restores it.

    Raises:
        ValueError: it masks after the subsampling, where NeMo learns other tokens.
    """
    config = model.config
    if config.mask_position != "before":
        raise ValueError(
            "mask_position is 'after': NeMo then learns tokens of its own features, which are not those of this model. "
            "Only models that mask before the subsampling can be written as .nemo"
        )
    if config.normalize_input:
        logger.warning("normalize_input is no setting of NeMo 3.0: the encoder is the same there, the tokens are not")
    weights = {nemo_name(name): values for name, values in model.state_dict().items()}
    weights["decoder.decoder_layers.0.weight"] = weights["decoder.decoder_layers.0.weight"][..., None]
    weights["quantizer.codebooks"] = weights["quantizer.codebooks"].double()
    weights["preprocessor.featurizer.window"] = torch.hann_window(400, periodic=False)
    filters_MF = slaney_filters(config.encoder.num_mel_bins, 512, torch.device("cpu"))
    weights["preprocessor.featurizer.fb"] = filters_MF[None].clone()
    saved = io.BytesIO()
    torch.save({name: values.cpu().contiguous() for name, values in weights.items()}, saved)
    members = {_SETTINGS: yaml.safe_dump(nemo_settings(config), sort_keys=False).encode(), _WEIGHTS: saved.getvalue()}
    with atomic_file(Path(file)) as opened, tarfile.open(fileobj=opened, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def our_name(name: str) -> str:
    """A weight of NeMo's by our name.

    >>> our_name("encoder.layers.3.self_attn.linear_pos.weight")
    'encoder.layers.3.self_attn.relative_k_proj.weight'
    """
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def nemo_name(name: str) -> str:
    """A weight of ours by NeMo's name.

    >>> nemo_name("encoder.layers.3.conv.norm.running_mean")
    'encoder.layers.3.conv.batch_norm.running_mean'
    """
    for theirs, ours in _NAMES:
        name = re.sub(f"^{re.escape(ours)}$", theirs, name) if ours == "fill" else name.replace(ours, theirs)
    return name


def config_of_nemo(settings: Mapping[str, Any], name: str = "the settings") -> NestConfig:
    """The config that NeMo's settings come to.

    Raises:
        ValueError: they are of another class, or of an encoder that is none of ours; names the setting.
    """
    target = str(settings.get("target", "")).rpartition(".")[2]
    if target not in CLASSES:
        raise ValueError(
            f"{name} is a {target or 'model of no class'}, not a NEST checkpoint ({' or '.join(CLASSES)}). Encoders of "
            "recognisers come as Parakeet from the Hub: give their id as audio_tower"
        )
    if settings.get("mask_position", "pre_conv") != "pre_conv":
        raise ValueError(
            f"{name} was trained with mask_position {settings['mask_position']!r}: its tokens are those of features of "
            "its own, which this library does not learn. Convert one trained with 'pre_conv'"
        )
    encoder, quantizer, masking = settings["encoder"], settings["quantizer"], settings["masking"]
    for setting, needed in _ENCODER.items():
        found = encoder.get(setting, needed)
        if (list(found) if isinstance(found, list | tuple) else found) != needed:
            raise ValueError(f"{name}: encoder.{setting} is {found!r}, and only {needed!r} can be converted")
    if not masking.get("allow_overlap", False):
        logger.warning("%s drew blocks that do not overlap; they do from here on, at the same mask_probability", name)
    channels = encoder["subsampling_conv_channels"]
    own = {
        "hidden_size": encoder["d_model"],
        "num_hidden_layers": encoder["n_layers"],
        "num_attention_heads": encoder["n_heads"],
        "intermediate_size": encoder["ff_expansion_factor"] * encoder["d_model"],
        "attention_bias": encoder.get("use_bias", True),
        "convolution_bias": encoder.get("use_bias", True),
        "conv_kernel_size": encoder["conv_kernel_size"],
        "subsampling_factor": encoder["subsampling_factor"],
        "subsampling_conv_channels": channels if channels > 0 else encoder["d_model"],
        "num_mel_bins": encoder["feat_in"],
        "dropout": encoder["dropout_pre_encoder"],
        "dropout_positions": encoder["dropout_emb"],
        "activation_dropout": encoder["dropout"],
        "attention_dropout": encoder["dropout_att"],
        "max_position_embeddings": encoder["pos_emb_max_len"],
        "scale_input": encoder["xscaling"],
    }
    return NestConfig(
        encoder_config=own,
        num_books=quantizer["num_books"],
        num_codes=quantizer["num_classes"],
        code_dim=quantizer["code_dim"],
        block_frames=masking["block_size"],
        mask_probability=masking["mask_prob"],
        mask_threshold=settings["loss"].get("mask_threshold", 0.8),
    )


def nemo_settings(config: NestConfig) -> dict[str, Any]:
    """A config as NeMo's settings."""
    encoder, window = config.encoder, config.window_frames
    bins, width = encoder.num_mel_bins, encoder.hidden_size
    return {
        "sample_rate": 16000, "num_classes": config.num_codes, "num_books": config.num_books,
        "code_dim": config.code_dim, "squeeze_single": False, "mask_position": "pre_conv", "train_ds": None,
        "validation_ds": None,
        "preprocessor": {
            "_target_": f"{_MODULES}.AudioToMelSpectrogramPreprocessor", "sample_rate": 16000,
            "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01, "window": "hann",
            "features": bins, "n_fft": 512, "log": True, "frame_splicing": 1, "dither": 1e-5, "pad_to": 16,
            "pad_value": 0.0,
        },
        "spec_augment": {
            "_target_": f"{_MODULES}.SpectrogramAugmentation", "freq_masks": 0, "time_masks": 0, "freq_width": 27,
            "time_width": 0.05,
        },
        "masking": {
            "_target_": f"{_MODULES}.RandomBlockMasking", "block_size": config.block_frames,
            "mask_prob": config.mask_probability, "feat_in": bins, "freeze": True, "allow_overlap": True,
        },
        "quantizer": {
            "_target_": f"{_MODULES}.RandomProjectionVectorQuantizer", "feat_in": bins, "code_dim": config.code_dim,
            "num_books": config.num_books, "num_classes": config.num_codes, "dist_fn": "l2", "freeze": True,
            "squeeze_single": False, "combine_time_steps": window,
        },
        "encoder": {
            "_target_": f"{_MODULES}.ConformerEncoder", "feat_in": bins, "feat_out": -1,
            "n_layers": encoder.num_hidden_layers, "d_model": width, "use_bias": encoder.attention_bias,
            "subsampling_factor": encoder.subsampling_factor,
            "subsampling_conv_channels": encoder.subsampling_conv_channels,
            "ff_expansion_factor": encoder.intermediate_size // width, "n_heads": encoder.num_attention_heads,
            "att_context_style": "regular", "xscaling": encoder.scale_input,
            "pos_emb_max_len": encoder.max_position_embeddings, "conv_kernel_size": encoder.conv_kernel_size,
            "dropout": encoder.activation_dropout, "dropout_pre_encoder": encoder.dropout,
            "dropout_emb": encoder.dropout_positions, "dropout_att": encoder.attention_dropout, **_ENCODER,
        },
        "decoder": {
            "_target_": f"{_MODULES}.MultiSoftmaxDecoder", "feat_in": width, "num_classes": config.num_codes,
            "num_decoders": config.num_books, "squeeze_single": False, "use_bias": True,
        },
        "loss": {
            "_target_": "nemo.collections.asr.losses.MultiMLMLoss", "combine_time_steps": window,
            "mask_threshold": config.mask_threshold, "num_decoders": config.num_books, "squeeze_single": False,
        },
        "optim": {
            "name": "adamw", "lr": 5.0, "betas": [0.9, 0.98], "weight_decay": 1e-3,
            "sched": {"name": "NoamAnnealing", "d_model": width, "warmup_steps": 25000, "min_lr": 1e-6},
        },
        "target": f"{_MODULE}.{CLASSES[0]}", "nemo_version": "3.0.0",
    }  # fmt: skip


def _unpacked(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with tarfile.open(file) as tar:
            members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
            if not {_SETTINGS, _WEIGHTS} <= members.keys():
                raise ValueError(f"{file} holds no {_SETTINGS} and {_WEIGHTS}: it is no .nemo file")
            opened: list[Any] = [tar.extractfile(members[name]) for name in (_SETTINGS, _WEIGHTS)]
            settings, weights = (each.read() for each in opened)
        return yaml.safe_load(settings), torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    except (tarfile.TarError, EOFError, yaml.YAMLError, pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{file} is no .nemo file, or not a whole one: {str(error).splitlines()[0]}") from error
