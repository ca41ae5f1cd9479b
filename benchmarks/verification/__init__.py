"""Search by sounds and alignment: what they cost and find, beside CTC losses over all terms and a beam-search decoder.

`__main__` the clock and the tables · `clips` what a phoneme head heard, real or simulated · `terms` banks of real
terms · `peers` the other ways · `spelling` the decoder, beside its transcription · `costs`
what each look at a clip of 3 s takes, beside the search of a transcript
"""
