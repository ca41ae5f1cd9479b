"""`qtr pack`, `append`, `merge`, `export`, `inspect` and `verify`: what is done with packs."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_term_retrieval.cli.app import PACKS, Quiet, app, log_to_terminal

if TYPE_CHECKING:
    from qwen_term_retrieval.corpora.corpus import CorpusReader
    from qwen_term_retrieval.packs.pack import Pack
    from qwen_term_retrieval.tokens.token_pack import TokenPack


class OnError(StrEnum):
    """What packing does with bad audio."""

    RAISE = "raise"
    SKIP = "skip"
    SILENCE = "silence"


class ExportFormat(StrEnum):
    """What a pack is turned back into."""

    WAV = "wav"
    FLAC = "flac"
    DATASET = "dataset"


def num_bytes(size: str) -> int:
    """A size in bytes from `512MiB`, `2GB`, `2G` or a bare number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", size.strip().lower())
    power = "kmgt".index(match[2]) + 1 if match and match[2] else 0
    if match is None or (total := int(float(match[1]) * (1024 if match[3] else 1000) ** power)) < 1:
        raise typer.BadParameter(f"{size!r} is no size; write 512MiB, 2GB or a number of bytes")
    return total


# What typer takes for the type of a parsed option, and what a command gets.
Size = int
ShardBytes = Annotated[
    Size, typer.Option(parser=num_bytes, metavar="SIZE", help="Upper bound of a shard file, as 512MiB or 2GB.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless given.")]
BadAudio = Annotated[OnError, typer.Option(help="What to do with audio that cannot be used.")]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Folder, manifest or URL of a corpus; docs/data.md lists the layouts.")
]
Layout = Annotated[
    str, typer.Option("--format", help="Layout of SOURCE where it is not seen: manifest, nemo, kaldi, lhotse …")
]
KeyRule = Annotated[str, typer.Option(help="Keys of rows without one: by path, by term_chunks, or auto.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="A column of another name; repeatable.")
]


Split = Annotated[str | None, typer.Option(help="Split of all clips; else as the corpus, its folders or names say.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read legacy shards whose index can run code; only if you trust them.")
]


def corpus_of(
    source: str, layout: str, split: str | None, key_rule: str, columns: list[str] | None, allow_pickle: bool
) -> CorpusReader:
    """The corpus, read as the options say."""
    from qwen_term_retrieval.corpora.corpus import read_corpus

    pairs = [column.partition("=") for column in columns or []]
    wrong = [column for column, (ours, _, theirs) in zip(columns or [], pairs, strict=True) if not (ours and theirs)]
    if wrong:
        raise ValueError(f"--column {wrong[0]!r} is no OURS=THEIRS; write text=raw_text")
    names = {ours: theirs for ours, _, theirs in pairs}
    return read_corpus(source, format=layout, split=split, key_rule=key_rule, columns=names, allow_pickle=allow_pickle)


@app.command(rich_help_panel=PACKS)
def pack(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    sampling_rate: Annotated[int, typer.Option(help="Rate of the packed audio, in Hz.")] = 16_000,
    shard_bytes: ShardBytes = "2GiB",  # type: ignore[assignment]
    workers: Workers = None,
    on_error: BadAudio = OnError.RAISE,
    layout: Layout = "auto",
    split: Split = None,
    key_rule: KeyRule = "auto",
    column: Columns = None,
    allow_pickle: AllowPickle = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pack that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Pack a corpus into memory-mapped shards.

    Killed, it goes on where it was when run again. The bytes of a pack depend on the corpus alone.

    A corpus is a folder of audio with a table beside it:

        recordings/metadata.csv:   file_name,text,terms
                                   a.wav,patient has atrial fibrillation,atrial fibrillation
                                   b.wav,good morning,
                                   c.wav,aspirin after a heart attack,aspirin|heart attack

    or JSON Lines: `{"audio": "a.wav", "text": "…", "terms": ["…"], "term_starts": [0.8], "term_ends": [1.9]}`.

    For example:

        qtr pack recordings/ packs/mine
        qtr pack terms.json packs/terms --on-error skip --workers 8 --shard-bytes 512MiB
        qtr pack clips.csv packs/clips --column text=sentence --column audio=path
    """
    from qwen_term_retrieval.packs.packing import pack_corpus

    log_to_terminal(quiet)
    summary = pack_corpus(
        corpus_of(source, layout, split, key_rule, column, allow_pickle),
        out,
        sampling_rate=sampling_rate,
        shard_bytes=shard_bytes,
        num_workers=workers,
        on_error=on_error.value,
        overwrite=overwrite,
        quiet=quiet,
    )
    typer.echo(summary)


@app.command(rich_help_panel=PACKS)
def append(
    source: Source,
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="The pack that grows.")],
    shard_bytes: ShardBytes = "2GiB",  # type: ignore[assignment]
    workers: Workers = None,
    on_error: BadAudio = OnError.RAISE,
    layout: Layout = "auto",
    split: Split = None,
    key_rule: KeyRule = "auto",
    column: Columns = None,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
) -> None:
    """Append a corpus to a pack; what is in the pack is not written again.

    Killed, it goes on where it was when run again. Those who read the pack meanwhile are not disturbed. A key that the
    pack has already is refused.

    For example:

        qtr append this_week/ packs/mine
        qtr append more.jsonl packs/mine --on-error skip
    """
    from qwen_term_retrieval.packs.appending import append_corpus

    log_to_terminal(quiet)
    summary = append_corpus(
        corpus_of(source, layout, split, key_rule, column, allow_pickle),
        folder,
        shard_bytes=shard_bytes,
        num_workers=workers,
        on_error=on_error.value,
        quiet=quiet,
    )
    typer.echo(f"added to {summary}")


@app.command(rich_help_panel=PACKS)
def merge(
    packs: Annotated[list[Path], typer.Argument(metavar="PACK... OUT", help="Packs, and last the folder to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pack that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge packs of one sampling rate into a new one; splits of one name are joined.

    Nothing is decoded or written anew: files become hard links, or are copied where OUT is on another file system.

    For example:

        qtr merge packs/clinic packs/lectures packs/all
    """
    from qwen_term_retrieval.packs.merging import merge_packs

    if len(packs) < 2:
        raise ValueError(f"{packs[0]} alone is nothing to merge; give packs, and last the folder to make: PACK... OUT")
    log_to_terminal(quiet)
    merged = merge_packs(packs[:-1], packs[-1], overwrite=overwrite, quiet=quiet)
    typer.echo(f"{merged.folder}: {merged.num_clips} clips in {len(merged.shards)} shards")


@app.command(rich_help_panel=PACKS)
def export(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="A pack.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    format: Annotated[
        ExportFormat, typer.Option(help="Audio files, or a dataset that holds them.")
    ] = ExportFormat.FLAC,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn a pack back into audio files with a metadata.jsonl, or into a plain dataset that needs no library of ours.

    `qtr pack` of OUT makes the same clips and rows again.

    For example:

        qtr export packs/mine recordings/
        qtr export packs/mine parquet/ --format dataset      # load_dataset("parquet") anywhere
    """
    from qwen_term_retrieval.packs.exporting import export_pack

    log_to_terminal(quiet)
    num_clips = export_pack(folder, out, format=format.value, num_workers=workers, overwrite=overwrite, quiet=quiet)
    typer.echo(f"{out}: {num_clips} clips")


@app.command(rich_help_panel=PACKS)
def inspect(folder: Annotated[Path, typer.Argument(metavar="PACK", help="A pack of audio or of tokens.")]) -> None:
    """Show what is inside a pack.

    Splits with their clips and hours, shards, columns, what packing left out, and the first clips.

    For example:

        qtr inspect packs/mine
    """
    typer.echo(_open(folder).inspect())


@app.command(rich_help_panel=PACKS)
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A pack of audio or of tokens, or a folder of `qtr index`.")
    ],
    quiet: Quiet = False,
) -> None:
    """Read every byte of a pack or an index and compare checksums; exit code 1 where a bit differs.

    Each damage is one line that names the file, and the clips in it.

    For example:

        qtr verify packs/mine
        qtr verify indexes/icd10
    """
    from qwen_term_retrieval.retrieval.indexes.folder import damages_of, is_index

    damages = damages_of(folder, quiet=quiet) if is_index(folder) else _open(folder).verify(quiet=quiet)
    for damage in damages:
        typer.secho(damage, fg="red", err=True)
    if damages:
        raise typer.Exit(1)
    typer.echo(f"{folder}: whole")


def _open(folder: Path) -> Pack | TokenPack:
    from qwen_term_retrieval.packs.pack import Pack
    from qwen_term_retrieval.tokens.token_pack import TOKENS_JSON, TokenPack

    return TokenPack.open(folder) if (folder / TOKENS_JSON).is_file() else Pack.open(folder)
