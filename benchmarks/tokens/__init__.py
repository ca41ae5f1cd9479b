"""Token shards: packing beside bare tokenizer loops, reading beside nanoGPT's loop.

`__main__` is all of it: the corpus, the loops, the clock.
"""
