"""How fast clips are read and packed, beside other formats, from one run.

    __main__   `python -m benchmarks.data`: options, sections, what earlier runs found
    clips      the clips that every row reads
    measure    a row timed: a process a row, passes that take turns
    rows       rows of our own, of loose files and of memory maps
    peers      rows of other libraries
    reading    section `reading`: shuffled, warm
    cold       section `cold`: shuffled, from the disk
    loader     section `loader`: a DataLoader that feeds a no-op
    packing    sections `packing` and `memory`
    large      section `large`: 5,000,000 rows
    report     the tables

`peers` and what it imports run in an environment without this library.
"""
