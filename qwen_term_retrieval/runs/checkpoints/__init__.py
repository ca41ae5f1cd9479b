"""What a run keeps, and how it goes on from it.

best.py           which is the best, and whether the run is over
resuming.py       the newest whole checkpoint, over the data that it began with
random_state.py   random states, taken and put back
publishing.py     checkpoints on the Hub
"""
