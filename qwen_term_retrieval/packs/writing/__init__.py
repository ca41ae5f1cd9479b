"""The steps of packing: utterances to parts, parts to shards and tables.

increment.py   what one run adds to a pack, made step by step
parts.py       a few dozen utterances decoded: the unit of work and of resuming
segments.py    clips cut from long recordings, each decoded once
sealing.py     parts to shards
tables.py      the rows of all parts to tables, key index and card
progress.py    what is packed, and the bar that shows how far it is
"""
