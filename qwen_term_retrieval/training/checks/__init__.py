"""What a `TermRetrievalTrainer` refuses before the first step.

own_parts.py     parts of `Trainer` that it makes itself
step_memory.py   a step that does not fit into memory
"""
