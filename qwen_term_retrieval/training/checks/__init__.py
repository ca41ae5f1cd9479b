"""What is refused before the first step because it would not fit.

memory.py        whether a step fits, for any trainer: free memory, measuring, the wording
term_memory.py   what a step of `TermRetrievalTrainer` needs
"""
