"""One difference at a time, on recordings of people.

ablation      what each part of a training buys
first_stage   what a prototype did otherwise
text_towers   terms by phonemes, by letters, and by an encoder that learned sounds from spelling
report        their table
"""
