"""What augmentation of a batch costs on one core, and that a numpy loop over its clips gives the same samples.

`__main__` is all of it: the stages timed, the peer, the proof.
"""
