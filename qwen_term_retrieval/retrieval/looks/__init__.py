"""Windows and sounds of a chunk to terms that are believed.

first_look.py      the terms that lie nearest to its windows
second_look.py     what is proposed, and what is believed
spelling_look.py   a decoder's word on terms that claim the same place
"""
