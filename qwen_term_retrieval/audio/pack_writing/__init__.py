"""How a pack is made: parts by workers, parts laid into shards, tables, all of it in a staging folder."""
