"""Packs: a corpus as memory-mapped shards, an index and a table a split.

packing.py       a corpus to a pack
appending.py     more clips into a pack
merging.py       several packs to one
exporting.py     a pack to audio files, or to Parquet with the audio inside
pack.py          an open pack: what is in it, and whether it is whole
feature.py       clips of a pack as the rows of a dataset
clip_reader.py   clips by row number, past the dataset, fast
loading.py       rows by the name of a dataset
holding_out.py   some rows to judge by, where a dataset names none
row_schema.py    the columns of a pack's tables
loose.py         the same rows without a pack
legacy.py        older shards, and packs, as one keyed collection
format/          the files of a pack, and where they are found
writing/         the steps of packing
"""
