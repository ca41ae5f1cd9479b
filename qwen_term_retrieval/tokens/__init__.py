"""Token packs: text as memory-mapped shards of token ids, and training windows out of them.

packing.py            texts to a token pack
sources.py            documents out of Parquet and JSON Lines
tokenizer.py          a tokenizer as packing needs it
parts.py              a batch of documents tokenized: the unit of work and of resuming
sealing.py            parts to shards
token_pack.py         the files of a token pack, and whether they are whole
mmap_tokens.py        training windows by number
stream.py             the shards as one stream of ids
large_token_dataset.py  every offset of one file of ids as a window, as lectures have it
mmap_pairs.py         pairs of prompt and response by number
document_windows.py   windows that stay within a document
window_order.py       which window comes when
"""
