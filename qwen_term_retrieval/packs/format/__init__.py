"""What writers and readers of a pack agree on.

shards.py         the shard file and its index
key_index.py      where each clip is, by its key
pack_json.py      the contents of a pack and the checksum of each file
open_shards.py    where the shards of this machine are
verification.py   samples given out only if their checksum is right
"""
