"""Files of prompts and responses made ready: converted, split, looked at, tokenized, each in a pass or two.

pairs.py        rows of CSV, JSON and Parquet files as pairs, or what is wrong with them
parquet.py      pairs into Parquet and out of it, a batch at a time
converting.py   files of any of these kinds to one Parquet file
duplicates.py   which rows repeat an earlier one, in memory that does not grow with them
splitting.py    training and validation rows that share no response
lengths.py      lengths of texts in a table of fixed size
inspecting.py   how good the pairs are: counts, lengths, duplicates, what a limit would cut
vocabulary.py   a tokenizer trained on a sample
corpora.py      pairs out of pinned packages: dictionaries, and how words are said
preparing.py    all of it in one call
"""
