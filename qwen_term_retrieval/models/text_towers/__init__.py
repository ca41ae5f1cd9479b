"""Text towers: terms to pooled vectors.

tower              the base of all, and the one that a name asks for
phoneme_encoder    what a term sounds like
text_encoder       what a term means, by a pretrained encoder
sound_and_meaning  both, weighed by a learned gate
text_cache         vectors of a frozen text encoder, computed once
"""
