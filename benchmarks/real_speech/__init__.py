"""Spoken-term retrieval on recordings of people, beside Whisper and a search.

    __main__              `python -m benchmarks.real_speech`: stages, each of which keeps its result
    judged_sets           the recordings judged on, and what may not be trained on
    asterisk              the prompts of a telephone exchange: one speaker in a studio
    volunteers            words that volunteers said into their own microphones
    term_banks            the terms searched: the clips' own among thousands of others
    baselines             a transcript, then the nearest term: in spelling, sound or meaning
    long                  a room: terms inside longer speech, alone and joined to recordings
    alike                 a room: pairs of a clip and a term, LibriPhrase among them
    whisper_transcripts   those transcripts
    spelling              numbers and signs as words, for transcripts and terms alike
    work_folder           what the stages of a run leave for one another
    report                the table, the targets, the picture
    laptop                makes the corpus and the model that are judged
    ablations             a room: what each part of a training buys, and each kind of text tower
    verifying             a room: what the second look is worth: recall, belief, false alarms, sizes of banks

`python -m benchmarks.real_speech.laptop` is a program too, as are most files of the two last rooms.
"""
