"""Recordings to int16 batches: read a corpus, pack it, open the pack, batch its clips."""
