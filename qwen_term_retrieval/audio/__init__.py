"""Recordings to int16 batches: read a corpus, pack it, open the pack, batch its clips.

    corpus, utterance            what there is: recordings and what is said in them; `readers/` one layout a file
    decoding                     one recording to PCM; `files/` opens it, and serves rows from it without a pack
    packing, appending, merging  making packs; the steps are in `pack_writing/`
    pack, legacy, exporting      packs opened, older shards too, and given back as files
    feature, clip_reader         clips as the rows of a dataset, and past the dataset, fast
    collate                      clips to padded batches
    noise                        what augmentation will do to a clip; its settings, its impulse responses

`pack_format/` is what both sides of a pack rely on: its files, and where they are found.
"""
