"""Trainer callbacks, one a file; they import as `qwen_term_retrieval.trainer_callbacks`."""
