"""The files of a pack and where they are found: rows, shards, key index, `pack.json`, their checksums."""
