"""Recordings in files of their own: opened wherever they lie, and served as rows without a pack."""
