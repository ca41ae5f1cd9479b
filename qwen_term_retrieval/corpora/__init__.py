"""Corpora in any layout to utterances: recordings, and what is said in them.

utterance.py   one recording and what is known of it
corpus.py      `read_corpus`: which layout a source has, and each key once
locations.py   files of a corpus, on this machine or behind a URL
row_rules.py   a row of any layout, checked, to an utterance
estimates.py   about how many rows there are, for progress bars
readers/       one layout a file
"""
