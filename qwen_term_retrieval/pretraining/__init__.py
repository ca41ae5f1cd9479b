"""Pre-trainings: encoders that the retriever's towers can be, learned from text alone or from audio alone.

text/   prompt and response pairs to an encoder-decoder or a decoder
"""
