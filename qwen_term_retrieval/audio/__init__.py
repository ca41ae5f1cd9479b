"""Signal: one recording, whatever its format, to 16-bit samples, and clips of them to batches.

sources.py        where a recording can come from: path, URL, bytes, array, slice of a file
urls.py           the file system behind a URL
sound_files.py    encoded recordings opened, their headers checked
decoding.py       any recording to mono int16 at one rate
clip.py           a reference to samples that are read when asked for
clip_feature.py   what the `datasets` features of clips share, and the way to `datasets.Audio`
file_audio.py     clips of audio that stays in its own files
collate.py        clips to padded batches
"""
