"""Pre-trainings: encoders that the retriever's towers can be, learned from text alone or from audio alone.

audio/  speech without labels to an encoder: denoising of masked tokens (NEST)
text/   prompt and response pairs to an encoder-decoder or a decoder
"""
