"""What a glossary's index is made of.

building.py      a large glossary straight into a folder
state.py         what an index holds at one moment
parts.py         one part of it: terms, vectors, sounds
terms.py         terms as columns, found by any spelling
sounds.py        how the terms of a part sound
sketch.py        vectors in int8, and what a row can score at most
graph.py         an approximate first look
holding.py       what makes a large part quick
newcomers.py     terms that an index does not know yet
vectors_file.py  vectors that stay on the disk
search.py        the best terms of a part
folder.py        an index on disk
older_folder.py  folders of version 1
"""
