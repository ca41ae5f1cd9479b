from qwen_term_retrieval.cli import app

app()
