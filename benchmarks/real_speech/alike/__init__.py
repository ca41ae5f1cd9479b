"""Pairs of a clip and a term: is it the term that is said, or one that sounds alike?

pairs         what a pair is, and the pairs of the two real sets, near and far by phonemes
libriphrase   LibriPhrase as such pairs, from a local folder
scorers       (clip, terms) to scores: the model's cosine, sounds and verifier, a transcript's likeness
program       the stages of `--test-set alike` and `--test-set libriphrase`
report        their tables
"""
