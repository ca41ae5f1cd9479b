"""What a `NestForPreTraining` is made of, and the sizes that are known by their names.

Attributes' defaults are those of NEST (Huang et al. 2024) in its published settings, but for `min_blocks`.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from transformers import AutoConfig, ParakeetEncoderConfig, PreTrainedConfig

MASK_POSITIONS = ("before", "after")
# Of the encoder: its width, heads and layers; XL has no biases and does not scale its input.
SIZES: dict[str, dict[str, Any]] = {
    "demo": {"hidden_size": 144, "num_attention_heads": 4, "num_hidden_layers": 8, "subsampling_conv_channels": 64},
    "S": {"hidden_size": 176, "num_attention_heads": 4, "num_hidden_layers": 16},
    "M": {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 16},
    "L": {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 17},
    "XL": {
        "hidden_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 24,
        "attention_bias": False, "convolution_bias": False, "scale_input": False,
    },
}  # fmt: skip


class NestConfig(PreTrainedConfig):
    r"""Configuration of denoising masked-token pre-training.

    Args:
        encoder_config: of `ParakeetEncoder`. No layer is dropped, unless it says so by itself.
        num_books: codebooks; each gives every token a code of its own.
        num_codes: codes of a book.
        code_dim: numbers that a code is made of.
        normalize_input: give each window of mel frames mean 0 and variance 1 before it is projected: many more codes
            are used then, and they are other tokens than NeMo's.
        quantizer_seed: of projection and codes, which are drawn once and never trained: two models of one seed learn
            the same tokens.
        block_frames: mel frames (10 ms) of a masked block.
        mask_probability: that a block begins at a mel frame.
        min_blocks: blocks of a clip at least, where it is longer than one; 0: NeMo's rule, by which more than half of
            all clips of one second teach nothing.
        mask_position: "before" the subsampling, on mel frames, or "after" it, on encoder frames.
        mask_threshold: share of its mel frames above which a token counts as masked.

    Raises:
        ValueError: names the first setting that cannot be, and the remedy.

    Example:
        >>> config = NestConfig.of_size("S")
        >>> config.encoder_config.hidden_size, config.window_frames
        (176, 8)
    """

    model_type = "nest"
    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": ParakeetEncoderConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    num_books: int = 1
    num_codes: int = 8192
    code_dim: int = 16
    normalize_input: bool = False
    quantizer_seed: int = 0
    block_frames: int = 40
    mask_probability: float = 0.01
    min_blocks: int = 1
    mask_position: str = "before"
    mask_threshold: float = 0.8

    def __post_init__(self, **kwargs: Any) -> None:
        if self.encoder_config is None:
            self.encoder_config = self.encoder_settings("S")
        if isinstance(self.encoder_config, dict):
            settings = {name: value for name, value in self.encoder_config.items() if name != "model_type"}
            self.encoder_config = ParakeetEncoderConfig(**{"layerdrop": 0.0, **settings})
        self._check()
        super().__post_init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> NestConfig:
        """The config of one of `SIZES`, further settings of this config beside it.

        Raises:
            ValueError: there is no such size.
        """
        return cls(encoder_config=cls.encoder_settings(size), **settings)

    @staticmethod
    def encoder_settings(size: str) -> dict[str, Any]:
        """Settings of `ParakeetEncoderConfig` of one of `SIZES`."""
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
        known = SIZES[size]
        return {"intermediate_size": 4 * known["hidden_size"], "layerdrop": 0.0, **known}

    @property
    def window_frames(self) -> int:
        """Mel frames of a token."""
        return int(self.encoder.subsampling_factor)

    @property
    def encoder(self) -> ParakeetEncoderConfig:
        """The encoder's config."""
        return cast(ParakeetEncoderConfig, self.encoder_config)

    def _check(self) -> None:
        for name in ("num_books", "num_codes", "code_dim", "block_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.min_blocks < 0:
            raise ValueError(f"min_blocks must not be negative, not {self.min_blocks}")
        if not 0 <= self.mask_probability <= 1:
            raise ValueError(f"mask_probability must lie in [0, 1], not {self.mask_probability}")
        if not 0 <= self.mask_threshold < 1:
            raise ValueError(f"mask_threshold must lie in [0, 1), not {self.mask_threshold}")
        if self.mask_position not in MASK_POSITIONS:
            raise ValueError(f"mask_position must be one of {', '.join(MASK_POSITIONS)}, not {self.mask_position!r}")
        window = self.window_frames
        if self.mask_position == "after" and self.block_frames % window:
            raise ValueError(
                f"block_frames {self.block_frames} is no multiple of the {window} mel frames of a token, so no block "
                f"ends with one after the subsampling: use {-(-self.block_frames // window) * window}, or "
                "mask_position 'before'"
            )
        # The shortest block that masks a token wherever it begins.
        needed = window - 1 + int(self.mask_threshold * window) + 1
        if self.block_frames < needed:
            raise ValueError(
                f"a block of {self.block_frames} mel frames may mask no whole token of {window}: use block_frames "
                f"{needed} or more"
            )
        if self.encoder.num_mel_bins % window:
            raise ValueError(
                f"num_mel_bins {self.encoder.num_mel_bins} does not divide by the subsampling factor {window}: the "
                f"encoder would leave bins out; use {-(-self.encoder.num_mel_bins // window) * window}"
            )
        if self.encoder.hidden_size % self.encoder.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.encoder.hidden_size} does not divide by num_attention_heads "
                f"{self.encoder.num_attention_heads}"
            )


AutoConfig.register("nest", NestConfig, exist_ok=True)
