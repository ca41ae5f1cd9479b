"""`qtr explain`: why a term was found in a recording, or was not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tabulate import tabulate

from qwen_term_retrieval.cli.app import MODELS, Quiet, app
from qwen_term_retrieval.cli.retrieval import Device, Dtype, Model, Revision, check_output, log_with_libraries, terms_of

if TYPE_CHECKING:
    from qwen_term_retrieval.retrieval.explaining import Alignment, Explanation
    from qwen_term_retrieval.retrieval.index import TermIndex


@app.command(rich_help_panel=MODELS)
def explain(
    model: Model,
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="Audio file.")],
    term: Annotated[str, typer.Argument(metavar="TERM", help="What may be said in it, in any glossary or none.")],
    language: Annotated[str | None, typer.Option(help="Of the term, such as `fr`; default the head's first.")] = None,
    glossary: Annotated[
        Path | None,
        typer.Option(help="Glossary, or folder of `qtr index`: the probability among its terms, and which rival it."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="PNG of the alignment.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Say why a term was found in a recording, or was not: sound by sound, where it fits best.

    A row is a sound of the term: when it is said, how well it fits, and what was heard in its place. A score is the
    logarithm of how likely the sound is beside what was heard: 0 where just it was heard, below about -5 where it was
    not said. A row with a `+` is something heard that the term does not have. One bad row is a near twin, bad rows
    everywhere are another term; the fit adds them all up. It takes a model with a phoneme head.

    With a verifier, that `qtr calibrate` fits, the probability is shown: alone, as if the term were the whole glossary,
    and among the terms of `--glossary`. Those that claim the same place are named: they are why a good fit may not be
    believed.

    For example:

        qtr explain outputs/mine clip.wav "atrial fibrillation"
        qtr explain outputs/mine clip.wav sixteen --glossary numbers.txt --output sixteen.png
    """
    from qwen_term_retrieval.retrieval.explaining import explain as explain_term
    from qwen_term_retrieval.retrieval.looks.second_look import phoneme_head_of
    from qwen_term_retrieval.retrieval.recordings.inputs import open_recordings
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    log_with_libraries(quiet)
    if output is not None:
        check_output(output)
    terms = None if glossary is None else terms_of(glossary)
    open_recordings([audio])
    retriever = TermRetriever.from_pretrained(model, revision=revision, device=device, dtype=dtype)
    phoneme_head_of(retriever.model)
    index = None
    if terms is not None:
        index = retriever.index(terms, show_progress=not quiet)
        if index.id_of(term, language) is None:
            retriever.add_terms([{"term": term, "language": language}])
    explained = explain_term(retriever, audio, term, language, index=index)
    alignment = explained.alignment
    typer.echo(f"{term!r} in {audio}: {alignment.start:.2f} – {alignment.end:.2f} s\n\n{_table(alignment)}\n")
    for line in _summary(explained, index):
        typer.echo(line)
    if output is not None:
        from qwen_term_retrieval.audio.decoding import stretch_pcm
        from qwen_term_retrieval.evaluation.alignment_picture import draw_alignment, stretch_shown

        first, last = stretch_shown(alignment)
        draw_alignment(alignment, stretch_pcm(audio, first, last), output, begins=first)
        typer.echo(output)


def _table(alignment: Alignment) -> str:
    rows = [
        (each.symbol or "+", f"{each.start:.2f}", f"{each.end:.2f}", f"{each.score:.1f}", " ".join(each.heard) or "–")
        for each in alignment.in_order
    ]
    aligned = ("left", "right", "right", "right", "left")
    return tabulate(rows, ("sound", "from, s", "to, s", "score", "heard"), colalign=aligned, disable_numparse=True)


def _summary(explained: Explanation, index: TermIndex | None) -> list[str]:
    from qwen_term_retrieval.retrieval.looks.first_look import NUM_CANDIDATES

    alignment, alone, among = explained.alignment, explained.alone, explained.among
    lines = [f"fit {alignment.fit:.2f}, {alignment.fit_per_sound:.2f} a sound; worst: {alignment.worst}"]
    if alone is not None:
        lines.append(f"cosine {alone.score:.3f}; found at {alone.start:.2f} – {alone.end:.2f} s")
        if alone.probability is not None:
            lines.append(f"probability {alone.probability:.3f} alone")
    if index is None:
        return lines
    if among is None:
        lines.append(f"not among the {NUM_CANDIDATES} of {len(index)} terms that a search looks at")
    elif among.probability is not None:
        lines.append(f"probability {among.probability:.3f} among {len(index)} terms")
    rivals = ", ".join(f"{match.term} {match.confidence:.3f}" for match in explained.rivals)
    lines.append(f"the same place is claimed by: {rivals or 'no other term'}")
    return lines
