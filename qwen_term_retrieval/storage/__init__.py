"""Files on disk, whatever is in them: written whole or not at all, checked, and fetched from package registries.

atomic.py      one file that appears whole or not at all
staging.py     one folder that does: what may stand in its place, where it is made, and how it is put there
checksums.py   whether files still are what they were
packages.py    pinned archives of package registries, unpacked in the cache
"""
