"""What a search of a large glossary costs, beside numpy and FAISS.

__main__.py   the sections and their options
banks.py      real terms, their index, and the windows of real speech
searches.py   one clip's windows in a bank, every way in turn
holding.py    embedding, opening, adding, removing, memory, and searches beside writers
report.py     the tables
"""
