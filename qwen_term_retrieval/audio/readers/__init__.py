"""Corpus layouts: one reader a file; each turns what it finds into rows, and `rows.py` turns rows into utterances."""
