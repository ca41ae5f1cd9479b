"""Text towers: terms to pooled vectors.

tower.py               the base of all, and the one that a name asks for
phoneme_encoder.py     what a term sounds like
text_encoder.py        what a term means, by a pretrained encoder
sound_and_meaning.py   both, weighed by a learned gate
text_cache.py          vectors of a frozen text encoder, computed once
"""
