"""Hard negatives: for each training clip, wrong terms that are near to right.

mining.py     a mining by the model as it is, by all ranks
nearest.py    the nearest wrong terms, exact and streamed
phonetic.py   terms that sound alike
table.py      minings on disk, read by the collator
"""
