"""The head before the first step: it says each code as often as it comes, whatever it hears.

A head that is drawn begins above the unigram entropy, and the encoder first learns to say nothing at all, by frames
that are the same everywhere; small runs end there. One that begins at the frequencies has nothing to learn but what it
hears. Its matrix is zero until the first step, which gives it the encoder's frames; its bias is log frequency.

Shapes: H books, C codes.
"""

from __future__ import annotations

import torch

from qwen_term_retrieval.distributed import rank, world_size
from qwen_term_retrieval.pretraining.audio.data import NestClips
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.trainer_callbacks.codebook_usage import CodeCounts

NUM_CLIPS = 1024
# A code that none of them has is thought to have come so often.
_UNSEEN = 0.1
_BATCH = 16
_SEED = 1


@torch.no_grad()
def begin_at_frequencies(model: NestForPreTraining, clips: NestClips, num_clips: int = NUM_CLIPS) -> None:
    """Set the head of a model that was not trained to the frequencies of the codes in `num_clips` of `clips`.

    The same on any number of ranks, each of which calls it, with the model on its device.

    Example:
        >>> model = NestForPreTraining(config)                                                   # doctest: +SKIP
        >>> begin_at_frequencies(model, NestClips(rows, config, ClipSettings()))                 # doctest: +SKIP
    """
    config = model.config
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(_SEED))[:num_clips].tolist()
    counts = CodeCounts(config.num_books, config.num_codes)
    for number, first in enumerate(range(0, len(order), _BATCH)):
        if number % world_size() == rank():
            pcm_BS, num_samples_B = (each.to(model.device) for each in clips.clean(order[first : first + _BATCH]))
            mel_BMF, _ = model.mel(pcm_BS, num_samples_B)
            counts.add(model.quantizer(mel_BMF), model.num_frames(num_samples_B))
    log_HC = (counts.over_ranks(model.device).float() + _UNSEEN).log().to(model.device)
    model.head.weight.zero_()
    model.head.bias.copy_((log_HC - log_HC.logsumexp(1, keepdim=True)).T.flatten())
