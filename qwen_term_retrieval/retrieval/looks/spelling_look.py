"""A third look, by a decoder: which of several terms that claim the same place would be written for it.

Sounds cannot tell homophones apart, a decoder can. Terms of one place exclude one another, so they share what the
likeliest of them was believed with, in proportion to their odds and to what the decoder makes of their spellings. It
costs about a third of a transcription for each place, so it is asked for by name: `verify="spelling"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.models.audio_towers.whisper import WhisperTower
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.stream import Chunk
from qwen_term_retrieval.verification.spelling import SpellingVerifier

NUM_SPELLED = 25
_MOST_PLACES = 3
_LEAST_PROBABILITY = 0.02
_AROUND_SECONDS = 0.3
# How much of the decoder's log-probability counts. It is surer of itself than it is right.
_WEIGHT = 0.5


class SpellingLook:
    """Shares out belief among terms that claim the same place, by how they would be written.

    Args:
        model: on a Whisper tower, whose checkpoint has a decoder.

    Raises:
        VerifierError: the tower has no decoder.
    """

    def __init__(self, model: TermRetrievalModel):
        name = model.config.audio_tower
        if not isinstance(model.audio_tower, WhisperTower) or not isinstance(name, str):
            raise VerifierError(
                f"verify='spelling' takes a tower that has a decoder, a pretrained Whisper; this one is {name!r}"
            )
        self.verifier = SpellingVerifier.from_pretrained(name)
        self.samples_per_frame = round(SAMPLING_RATE / model.frame_rate)

    def reorder(self, chunk: Chunk, matches: Sequence[TermMatch]) -> list[TermMatch]:
        """The verified matches of a chunk, best first, in the order that their spellings give them."""
        shared: dict[tuple[int, float], TermMatch] = {}
        rest = [match for match in matches[:NUM_SPELLED] if match.confidence >= _LEAST_PROBABILITY]
        for _ in range(_MOST_PLACES):
            if not rest:
                break
            rivals = [match for match in rest if _claims(match, rest[0])]
            rest = [match for match in rest if match not in rivals]
            if len(rivals) > 1:
                shared |= {(match.term_id, match.start): match for match in self._share(chunk, rivals)}
        found = [shared.get((match.term_id, match.start), match) for match in matches]
        return sorted(found, key=lambda match: -match.confidence)

    def _share(self, chunk: Chunk, rivals: Sequence[TermMatch]) -> list[TermMatch]:
        first = chunk.first_frame * self.samples_per_frame
        start = int((min(match.start for match in rivals) - _AROUND_SECONDS) * SAMPLING_RATE) - first
        end = int((max(match.end for match in rivals) + _AROUND_SECONDS) * SAMPLING_RATE) - first
        scores = self.verifier.score(chunk.pcm[max(0, start) : end], [match.term for match in rivals])
        odds = np.array([np.log(match.confidence / max(1e-6, 1 - match.confidence)) for match in rivals])
        logits = odds + _WEIGHT * scores.log_probs_N.astype(np.float64)
        shares = np.exp(logits - logits.max())
        most = max(match.confidence for match in rivals)
        shared = most * shares / shares.sum()
        return [replace(match, probability=float(each)) for match, each in zip(rivals, shared, strict=True)]


def _claims(match: TermMatch, other: TermMatch) -> bool:
    """Whether more than half of the shorter of two places is common to both."""
    shared = min(match.end, other.end) - max(match.start, other.start)
    return 2 * shared > min(match.end - match.start, other.end - other.start)
