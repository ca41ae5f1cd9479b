"""What a run of any trainer of ours is made of; nothing here knows of terms.

trainer.py        `RunTrainer`: what every trainer of ours overrides
arguments.py      `RunArguments`: settings of any run
recipes.py        settings from a YAML recipe and flags
starting.py       how a run begins: messages, and a folder of its own
unsupported.py    settings and launches that are refused
trackers.py       `report_to`, checked
sampling.py       which row comes when, a function of (seed, epoch, position)
loader.py         epochs that follow one another without a pause
callbacks.py      patience, guard, throughput, memory check, in their order
log_file.py       the log as lines of JSON
loss_means.py     parts of a loss as means over steps and ranks
memory.py         whether a step fits: free memory, measuring, the wording
checkpoints/      what a run keeps, and how it goes on from it
"""
