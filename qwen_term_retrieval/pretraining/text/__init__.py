"""Text pre-training: pairs of prompt and response, from Parquet to a model, in memory that does not grow with them.

preparation/   files of pairs to Parquet, splits, a report, a tokenizer and token packs
"""
