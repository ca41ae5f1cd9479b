"""Signal: one recording, whatever its format, to 16-bit samples, and clips of them to batches.

sources.py        where a recording can come from: path, URL, bytes, open file, array, slice of a file
urls.py           the file system behind a URL
sound_files.py    encoded recordings opened, their headers checked
wav_headers.py    WAV files whose header does not know how long they are
containers.py     what libsndfile does not read, by PyAV: m4a, mp4, webm, mkv, wma, 3gp
decoding.py       any recording to mono int16 at one rate
clip.py           a reference to samples that are read when asked for
clip_feature.py   what the `datasets` features of clips share, and the way to `datasets.Audio`
file_audio.py     clips of audio that stays in its own files
collate.py        clips to padded batches
"""
