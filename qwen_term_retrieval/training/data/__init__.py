"""A training row on its way into a batch.

preparation.py     rows of a dataset -> `TrainingClips`; where the frames of clips come from
clips.py           what the losses know of a row: ids of what was said, languages, the identity of a run's data
sampling.py        which clip comes when, a function of (seed, epoch, position)
loader.py          epochs that follow one another without a pause
audio_source.py    audio inputs of a batch: samples, or cached frames
frame_sharing.py   frames of a frozen tower, computed by all ranks
frozen_texts.py    texts of a frozen encoder, encoded once
collator.py        clips -> tensors: queries, candidates, windows
"""
