"""Long recordings and live audio: speed, memory, and how soon a term is told.

__main__.py   the program: tables and JSON
speech.py     recordings made of the demo corpus's test clips, with the true end of each term
search.py     one search of a recording, in a process of its own: seconds, processor time, memory at its peak
live.py       a stream fed as a microphone feeds it, on a clock of its own
"""
