"""Answers as others read them: lines, tables, subtitles, labels of annotation tools.

formats.py     the formats by name, and what each is
lines.py       one line a match: text, JSON Lines, CSV, Audacity labels, RTTM
documents.py   one document: JSON, SubRip, WebVTT, Praat TextGrid
writing.py     answers to the terminal, to a file, or to one file a recording
tables.py      matches to a pandas table
"""
