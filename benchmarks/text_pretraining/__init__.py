"""Text pre-training: memory of each step over pairs, opening and resuming, the loader, padding and steps, beside peers.

__main__.py      sections, and the report
memory.py        peak memory of convert, split, inspect, tokenize and training, over ten times the pairs
opening.py       opening packs of millions of pairs, and the first batch after a resume in the middle of an epoch
loaders.py       real tokens a second out of a loader, and the share of padding, beside `datasets`
peers.py         litdata and MosaicML streaming over the same pairs, in an environment of theirs
steps.py         real tokens a second of whole training steps, beside the Trainer of transformers; on a GPU MFU
hour.py          one hour on two cores: what a model learns in it
sparse_pack.py   packs of any number of pairs that take no room on disk
"""
