"""What is refused before a run begins.

unsupported  settings and launches that a run would not follow
memory       a step that does not fit into memory, for any trainer
term_memory  what a step of `TermRetrievalTrainer` needs
"""
