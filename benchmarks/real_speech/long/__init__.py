"""Terms inside longer speech: prompts of more than four words, alone and joined to recordings of ten minutes.

recordings          a recording, and what is said where in it
content_terms       the glossary: the content words of a text, and their runs
prompts             the studio prompts as this set: clips, joined recordings, banks
earnings22          Contextual Earnings-22 as such a set, from a local folder
forced_times        where in a clip a term is said, by forced alignment
judging             answers to numbers
transcript_search   the peer: a transcript, then the term nearest to any run of its words
program             the stages of `--test-set long` and `--test-set earnings22`
report              their tables
"""
