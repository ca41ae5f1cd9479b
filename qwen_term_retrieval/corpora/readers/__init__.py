"""One reader a file: a layout to utterances, or a kind of table to rows.

folder.py            folders of audio, with metadata, manifests or neither
manifests.py         one row a clip, in any of the tables below
nemo.py              NeMo manifests
lhotse.py            Lhotse cuts
kaldi.py             Kaldi data folders
webdataset.py        tars
hf_datasets.py       datasets of `datasets`, in memory or saved
parquet_dataset.py   folders of Parquet with the audio inside
legacy_shards.py     shards of the system before this one
csv_rows.py          rows of CSV and TSV
json_rows.py         rows of JSON and JSON Lines
parquet_rows.py      rows of Parquet
"""
