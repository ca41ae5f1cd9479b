"""Augmentation: training clips as rooms, noise, other voices and telephones make them sound.

config.py              what may happen, and how often
planning.py            what is done to one visit of a clip, and the sounds that takes
impulse_responses.py   rooms and band filters
distortion.py          a batch distorted, on the CPU or the device
visits.py              a row as it is heard on one visit, and the copies that a frozen tower hears
"""
