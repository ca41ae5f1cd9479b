"""The tables of `benchmarks.data`, in Markdown: for the screen and for `results/data.md`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.data.reading import FLOOR, OURS, UNIT
from benchmarks.markdown import table, thousands

# Rows that ours is asked to beat, and by how much.
TARGETS = {
    UNIT: 3,
    "soundfile, WAV": 20,
    "HF Audio(decode=False)": 20,
    "Mosaic MDS, random": 8,
    "WebDataset, raw": 10,
    "Lhotse Shar": 30,
}


def reading_table(reading: Mapping[str, Any]) -> str:
    rows = reading["rows"]
    speed = {name: row.get("clips_per_second", math.nan) for name, row in rows.items()}
    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append([name, row["does"], f"not measured: {row['error']}", "", "", ""])
            continue
        target = f"{TARGETS[name]}×" if name in TARGETS else ""
        of_unit, ours = speed[name] / speed[UNIT], speed[OURS] / speed[name]
        lines.append([name, row["does"], thousands(speed[name]), f"{of_unit:.2f}×", f"{ours:.1f}×", target])
    return (
        table(["row", "what it does", "clips/s", "of the unit", "ours is faster by", "asked"], lines)
        + f"\nFloor: a clip is {reading['bytes_per_clip'] / 1e3:.1f} kB on average. Reading it once, at random, and "
        f"writing nothing takes {speed[FLOOR] / speed[UNIT]:.2f}× less time than the unit; ours, which also writes it, "
        f"reaches {speed[OURS] / speed[FLOOR]:.0%} of that. (In order, one thread copies "
        f"{reading['copy_bytes_per_second'] / 1e9:.1f} GB/s.) One pass of ours, profiled:\n\n"
        f"```\n{reading['profile']}\n```\n"
    )


def cold_table(cold: Mapping[str, Any]) -> str:
    rows = cold["rows"]
    pread = rows["os.pread"]["clips_per_second"]
    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append([name, f"not measured: {row['error']}", "", ""])
        else:
            speed = row["clips_per_second"]
            in_cache = f"{row['in_cache_before']:.1%}{'' if row['cold'] else ' **not cold**'}"
            lines.append([name, thousands(speed), f"{pread / speed:.2f}×", in_cache])
    header = ["row", "clips/s", "time of os.pread", "of its files in memory before a pass, at most"]
    return table(header, lines) + "\nAsked of ours: 1.3×. Streams read their files in order, the others at random.\n"


def loader_table(loader: Mapping[str, Any]) -> str:
    lines = [[workers, thousands(value)] for workers, value in loader["clips_per_second"].items()]
    return table(["workers", "clips/s"], lines)


def packing_table(packing: Mapping[str, Any]) -> str:
    bare = packing["median_seconds"]["bare loop"]
    lines = [[name, f"{s:.2f}", f"{s / bare:.2f}×"] for name, s in packing["median_seconds"].items()]
    return (
        table(["two processes", "seconds", "of the bare loop"], lines)
        + f"\n{packing['audio_hours_per_second']:.2f} h of audio a second. Asked: 1.15×. In one process, profiled:\n\n"
        f"```\n{packing['profile_of_one_worker']}\n```\n"
    )


def large_table(large: Mapping[str, Any]) -> str:
    seconds = [each["load_dataset_seconds"] for each in large["later"]]
    lines = [
        ["first `load_dataset`", f"{large['first_load_seconds']:.2f} s", ""],
        ["later `load_dataset`", f"{statistics.median(seconds):.3f} s", "2 s"],
        ["`ClipReader(rows)`", f"{large['clip_reader_seconds']:.3f} s", ""],
        ["first lookup of a key", f"{1e3 * large['first_lookup_seconds']:.1f} ms", ""],
        ["later lookups", f"{thousands(large['lookups_per_second'])} a second", ""],
    ]
    memory = [
        [way, *(f"{each['large'][name]:.0f} ({each['added_mib'][name]:+.0f})" for name in each["large"])]
        for way, each in large["workers"].items()
    ]
    return (
        f"{thousands(large['rows'])} rows: table {large['table_bytes'] / 1e6:.1f} MB, key index "
        f"{large['key_index_bytes'] / 1e6:.1f} MB.\n\n"
        + table(["what", "measured", "asked"], lines)
        + "\nMemory of a DataLoader worker in MiB, and what it adds to that of a worker on the small pack "
        "(asked: under 100). File pages are shared by all processes.\n\n"
        + table(["workers", "RssAnon", "RssFile", "private"], memory)
    )


def memory_table(memory: Mapping[str, Any]) -> str:
    lines = [[thousands(int(size)), f"{peak:.0f}"] for size, peak in memory["peak_mib"].items()]
    return table(["clips packed", "peak MiB of the largest process"], lines)


SECTIONS = {
    "reading": ("Shuffled reading, warm", reading_table),
    "cold": ("Shuffled reading, cold", cold_table),
    "loader": ("DataLoader feeding a no-op", loader_table),
    "packing": ("Packing FLAC", packing_table),
    "large": ("A large pack", large_table),
    "memory": ("Peak memory of packing", memory_table),
}


def report(results: Mapping[str, Any]) -> str:
    """All sections that `results` holds."""
    parts = [
        f"# Data\n\n{thousands(results['clips'])} clips of 0.5–3 s; medians of {results['repetitions']} interleaved "
        "repetitions. Made by `python -m benchmarks.data`.\n"
    ]
    for name, (title, make_table) in SECTIONS.items():
        if name in results:
            parts.append(f"\n## {title}\n\n{make_table(results[name])}")
    return "".join(parts)
