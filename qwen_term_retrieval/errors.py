"""What this library raises beside ValueError and FileNotFoundError; each message names the place and the remedy."""

from __future__ import annotations


class CorpusError(ValueError):
    """A corpus that cannot be read as given; the message names file, row and remedy."""


class BadAudioError(ValueError):
    """A recording that cannot be used as it is; the message says why, and the caller adds which one."""


class PackError(RuntimeError):
    """A pack, shard or index that is damaged, incomplete, foreign or of another version."""


class VerifierError(ValueError):
    """Answers that cannot be verified as asked: no phoneme head, no verifier, or speech that cannot fit one."""
