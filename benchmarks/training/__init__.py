"""How fast training is, beside stock encoders, the stock feature extractor and sentence-transformers.

    __main__      `python -m benchmarks.training`: options, parts, what earlier runs found
    clips         three-second clips of the demo corpus
    measure       rows timed in turns, counted, compared, profiled
    forward       part `forward`: an encoder on 3 s clips, beside its stock 30 s
    step          part `step`: whole training steps
    peer          the peer of `step`: sentence-transformers on the same towers
    mel           part `mel`: spectrograms on the device
    data          part `data`: how long the demo recipe waits for its batches
    mining        part `mining`: nearest wrong terms
    gpu           part `gpu`: utilisation of a GPU
    report        the tables
    loss_memory   memory and time of the loss

`python -m benchmarks.training.loss_memory` is a program of its own.
"""
