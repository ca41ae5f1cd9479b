"""Recordings as people give them: files, folders and patterns, searched one after another.

inputs.py      names to recordings: folders, patterns, channels, tracks, and which of them can be heard
searching.py   each recording searched, shown while the rest is read
"""
