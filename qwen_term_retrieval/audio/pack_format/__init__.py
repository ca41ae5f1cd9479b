"""The files of a pack and where they are found: shards, key index, `pack.json`, their checksums."""
