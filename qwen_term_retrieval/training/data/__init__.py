"""A training row on its way into a batch.

preparation.py     rows of a dataset -> `TrainingClips`; where the frames of clips come from
clips.py           what the losses know of a row: ids of what was said, languages, the identity of a run's data
audio_source.py    audio inputs of a batch: samples, or cached frames
frame_sharing.py   frames of a frozen tower, computed by all ranks
texts.py           texts encoded by all ranks, or once by a frozen encoder
collator.py        clips -> tensors: queries, candidates, windows
"""
