"""`datasets` builders; they import as `qwen_term_retrieval.builders`."""
