"""Corpora that take many hours of two cores to make, and what they are worth.

near_human   20,000 training clips by 300 voices of Kokoro
curve        recall on recordings of people against clips and voices
"""
