"""A glossary to an index of one model.

indexer.py       what a model indexes: glossaries, files, folders that grow
embedding.py     terms to vectors and sounds, a stretch at a time
saying.py        terms said as arrays, in processes where that pays
fingerprint.py   which model an index belongs to
"""
