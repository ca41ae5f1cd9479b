"""`NestForPreTraining`: hear noisy speech with holes in it, and say which tokens the clean speech has in the holes.

Clean speech goes to a frozen quantizer and becomes the targets; noisy speech, blocks of it hidden, goes through the
encoder, and a linear head predicts the targets of hidden tokens (NEST, Huang et al. 2024). What goes into the head are
hidden tokens alone. The encoder is `ParakeetEncoder` of transformers, and fits the retriever's audio tower.

Shapes: B clips, S samples, M mel frames, F mel bins, T encoder frames or tokens, D hidden, N hidden tokens, H books,
C codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, ParakeetEncoder, ParakeetEncoderConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention
from transformers.utils import ModelOutput

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.audio_towers.fast_conformer import encode_mel, use_frame_norms
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES
from qwen_term_retrieval.models.audio_towers.normalized_mel import parakeet_mel
from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.losses import MaskedTokenLoss
from qwen_term_retrieval.pretraining.audio.masking import BlockMask
from qwen_term_retrieval.pretraining.audio.quantizer import RandomProjectionQuantizer

# One mel frame has no spread, and is not normalised.
MIN_SAMPLES = 2 * HOP_SAMPLES
_FILL_STD = 0.1


@dataclass
class NestOutput(ModelOutput):
    """What a step needs, and what there is to look at.

    Attributes:
        loss: mean over the hidden tokens of the batch, in nats.
        logits_NCH: of hidden tokens; tokens_NH: their targets.
        frames_BTD: the encoder's last layer; num_frames_B: how many are each clip's.
        tokens_BTH: targets of all tokens; masked_BT: which are hidden.
    """

    loss: torch.Tensor | None = None
    logits_NCH: torch.Tensor | None = None
    tokens_NH: torch.Tensor | None = None
    frames_BTD: torch.Tensor | None = None
    num_frames_B: torch.Tensor | None = None
    tokens_BTH: torch.Tensor | None = None
    masked_BT: torch.Tensor | None = None


class NestEncoder(ParakeetEncoder):
    """`ParakeetEncoder` as it is trained from nothing: batch normalisation by frames, and weights as NeMo begins.

    transformers draws all weights at a standard deviation of .02, by which depthwise convolutions give next to nothing.
    """

    def __init__(self, config: ParakeetEncoderConfig):
        super().__init__(config)
        use_frame_norms(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, ParakeetEncoderAttention):
            init.zeros_(module.bias_u)
            init.zeros_(module.bias_v)


class NestForPreTraining(PreTrainedModel):
    """Encoder, head, quantizer.

    Example:
        >>> model = NestForPreTraining(NestConfig.of_size("S"))                                   # doctest: +SKIP
        >>> model(clean_BS, num_samples_B, noisy_pcm_BS=noisy_BS, mask=mask).loss                 # doctest: +SKIP
        >>> TermRetrievalConfig(audio_tower="outputs/nest")  # where it was saved                 # doctest: +SKIP
    """

    config: NestConfig
    config_class = NestConfig
    base_model_prefix = "nest"
    main_input_name = "pcm_BS"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ParakeetEncoderBlock"]  # noqa: RUF012

    fill: torch.Tensor

    def __init__(self, config: NestConfig):
        super().__init__(config)
        self.encoder = NestEncoder(config.encoder)
        self.quantizer = RandomProjectionQuantizer(config)
        self.head = nn.Linear(config.encoder.hidden_size, config.num_codes * config.num_books)
        self.register_buffer("fill", self._drawn_fill())
        self.block_mask = BlockMask.of(config)
        self.masked_token_loss = MaskedTokenLoss()
        self.post_init()

    def _drawn_fill(self) -> torch.Tensor:
        """What is put in place of a hidden frame."""
        encoder = self.config.encoder
        size = encoder.num_mel_bins if self.config.mask_position == "before" else encoder.hidden_size
        generator = torch.Generator("cpu").manual_seed(self.config.quantizer_seed + 1)
        return torch.randn(size, generator=generator, device="cpu") * _FILL_STD

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.copy_(self.fill, self._drawn_fill())
        elif isinstance(module, RandomProjectionQuantizer):
            for values, drawn in zip((module.projection, module.codes_HCK), module.drawn(), strict=True):
                init.copy_(values, drawn)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The first layer with weights: where `enable_input_require_grads` begins the graph."""
        return self.encoder.subsampling.linear

    # Tensors to a loss ----------------------------------------------------------------------------------------------

    @property
    def frame_rate(self) -> float:
        """Encoder frames a second."""
        return SAMPLING_RATE / HOP_SAMPLES / self.config.window_frames

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        """Encoder frames, and tokens, of clips of so many samples."""
        return self._num_tokens(num_samples_B // HOP_SAMPLES)

    def _num_tokens(self, num_mel_B: torch.Tensor) -> torch.Tensor:
        return -(-num_mel_B // self.config.window_frames)

    def mask(self, num_samples_B: torch.Tensor, draws: list[int]) -> torch.Tensor:
        """What of each clip is hidden, for `forward`: bool, mel frames or encoder frames, as the config has it."""
        return draw_mask(self.block_mask, self.config, num_samples_B, draws)

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mel_BMF, as wide as the longest clip, and num_mel_B; see `parakeet_mel`."""
        mel_BMF, num_mel_B = parakeet_mel(pcm_BS, num_samples_B, num_mel_bins=self.config.encoder.num_mel_bins)
        return mel_BMF[:, :-1], num_mel_B  # its last frame is no clip's

    def encode(
        self, mel_BMF: torch.Tensor, num_mel_B: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """frames_BTD of the last layer, with `mask` hidden; and num_frames_B."""
        change = None
        if mask is not None:
            if self.config.mask_position == "before":
                mel_BMF = torch.where(mask[..., None], self.fill.to(mel_BMF.dtype), mel_BMF)
            else:

                def change(hidden_BTD: torch.Tensor) -> torch.Tensor:
                    return torch.where(mask[..., None], self.fill.to(hidden_BTD.dtype), hidden_BTD)

        (frames_BTD,), valid_BT = encode_mel(self.encoder, mel_BMF, num_mel_B, self._run_layers, change=change)
        return frames_BTD, valid_BT.sum(1)

    def _run_layers(self, hidden_BTD: torch.Tensor, **inputs: torch.Tensor) -> list[torch.Tensor]:
        for layer in self.encoder.layers:
            hidden_BTD = layer(hidden_BTD, **inputs)
        return [hidden_BTD]

    def logits(self, frames_XD: torch.Tensor) -> torch.Tensor:
        """Scores of every code, (…, C, H), from frames (…, D)."""
        return self.head(frames_XD).unflatten(-1, (self.config.num_codes, self.config.num_books))

    def log_probs(self, frames_BTD: torch.Tensor) -> torch.Tensor:
        """log_probs_BTCH of every token, hidden or not."""
        return self.logits(frames_BTD).float().log_softmax(-2)

    def forward(
        self,
        pcm_BS: torch.Tensor | None = None,
        num_samples_B: torch.Tensor | None = None,
        mel_BMF: torch.Tensor | None = None,
        num_mel_B: torch.Tensor | None = None,
        noisy_pcm_BS: torch.Tensor | None = None,
        noisy_mel_BMF: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        labels: Any = None,
    ) -> NestOutput:
        """Predict the tokens of clean clips from noisy ones of the same length.

        Args:
            pcm_BS, num_samples_B: clean clips, int16 or floats in [-1, 1), 16 kHz; or
            mel_BMF, num_mel_B: their mel frames, zero behind a clip's last.
            noisy_pcm_BS: what is heard; or noisy_mel_BMF; neither: the clean clips.
            mask: bool, of `mask`; None: nothing is hidden, and there is no loss.

        Raises:
            ValueError: both samples and mel frames are given, or neither; a clip is too short; labels.
        """
        if labels is not None:
            raise ValueError("labels are not taken: the targets are tokens of the clean speech. Leave them out")
        if (pcm_BS is None) == (mel_BMF is None):
            raise ValueError("give either pcm_BS with num_samples_B, or mel_BMF with num_mel_B")
        if noisy_pcm_BS is not None and noisy_mel_BMF is not None:
            raise ValueError("give either noisy_pcm_BS or noisy_mel_BMF, not both")
        mel_BMF, noisy_mel_BMF, num_mel_B = self._both_mels(
            pcm_BS, num_samples_B, mel_BMF, num_mel_B, noisy_pcm_BS, noisy_mel_BMF
        )
        tokens_BTH = self.quantizer(mel_BMF)
        mask = None if mask is None else mask.to(mel_BMF.device)
        frames_BTD, num_frames_B = self.encode(noisy_mel_BMF, num_mel_B, mask)
        output = NestOutput(frames_BTD=frames_BTD, num_frames_B=num_frames_B, tokens_BTH=tokens_BTH)
        if mask is not None:
            output.masked_BT = self.block_mask.tokens(mask)
            output.tokens_NH = tokens_BTH[output.masked_BT]
            output.logits_NCH = self.logits(frames_BTD[output.masked_BT])
            output.loss = self.masked_token_loss(output.logits_NCH, output.tokens_NH)
        return output

    def _both_mels(
        self,
        pcm_BS: torch.Tensor | None,
        num_samples_B: torch.Tensor | None,
        mel_BMF: torch.Tensor | None,
        num_mel_B: torch.Tensor | None,
        noisy_pcm_BS: torch.Tensor | None,
        noisy_mel_BMF: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean and noisy mel frames, those of samples by one call, and how many there are of each clip."""
        given = [each for each in (pcm_BS, noisy_pcm_BS) if each is not None]
        if given:
            if num_samples_B is None:
                raise ValueError("samples come without num_samples_B")
            self.check_lengths(num_samples_B)
            if len({each.dtype for each in given}) > 1:
                given = [each / 32768 if each.dtype == torch.int16 else each for each in given]
            mels, counts = self.mel(torch.cat(given), num_samples_B.repeat(len(given)))
            halves = list(mels.chunk(len(given)))
            num_mel_B = counts[: len(num_samples_B)]
            if pcm_BS is not None:
                mel_BMF = halves[0]
            if noisy_pcm_BS is not None:
                noisy_mel_BMF = halves[-1]
        if mel_BMF is None or num_mel_B is None:
            raise ValueError("mel_BMF comes without num_mel_B")
        noisy_mel_BMF = mel_BMF if noisy_mel_BMF is None else noisy_mel_BMF
        if noisy_mel_BMF.shape != mel_BMF.shape:
            raise ValueError(
                f"noisy clips {tuple(noisy_mel_BMF.shape)} are not as long as the clean ones {tuple(mel_BMF.shape)}"
            )
        return mel_BMF, noisy_mel_BMF, num_mel_B.to(mel_BMF.device)

    def check_lengths(self, num_samples_B: torch.Tensor) -> None:
        """Raise a ValueError that names the first clip that is too short, on the CPU; a device is not waited for."""
        if num_samples_B.device.type == "cpu" and int(num_samples_B.min()) < MIN_SAMPLES:
            row = int(num_samples_B.argmin())
            raise ValueError(
                f"clip {row} of the batch has {int(num_samples_B[row])} samples: {MIN_SAMPLES} are two mel frames, and "
                "one has no spread. Leave it out, or set min_seconds"
            )


def draw_mask(block_mask: BlockMask, config: NestConfig, num_samples_B: torch.Tensor, draws: list[int]) -> torch.Tensor:
    """What of each clip is hidden, on the CPU: mel frames, or after the subsampling encoder frames."""
    num_mel_B = num_samples_B // HOP_SAMPLES
    if config.mask_position == "after":
        num_mel_B = -(-num_mel_B // config.window_frames)
    return block_mask(num_mel_B, draws)


AutoModel.register(NestConfig, NestForPreTraining, exist_ok=True)
