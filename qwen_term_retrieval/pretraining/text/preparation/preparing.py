"""Files of pairs to a folder that a run trains on: converted, split, looked at, tokenized and packed, in one call.

    report.txt, report.json, report.html   what the pairs were like, before duplicates were left out and they were split
    train.parquet, valid.parquet           the splits; test.parquet where it has a share
    tokenizer/                             what `AutoTokenizer` loads
    tokens/train/, tokens/valid/           token packs of the splits

Everything is made in `<out>.incomplete/`, and the folder appears whole. Single steps, for corpora that take hours, are
the functions called here, and the commands of `qtr text`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from qwen_term_retrieval.pretraining.text.preparation.converting import (
    ConversionSummary,
    Sources,
    convert_pairs,
    pairs_files,
)
from qwen_term_retrieval.pretraining.text.preparation.corpora import write_corpus
from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
from qwen_term_retrieval.pretraining.text.preparation.splitting import SplitSummary, split_pairs
from qwen_term_retrieval.pretraining.text.preparation.vocabulary import train_tokenizer
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of
from qwen_term_retrieval.tokens.mmap_pairs import pack_pairs
from qwen_term_retrieval.tokens.tokenizer import PackingTokenizer

logger = logging.getLogger(__name__)

SIGN = "report.json"


def prepare_text(
    source: Sources | None,
    out: str | Path,
    *,
    corpus: str | None = None,
    valid_source: Sources | None = None,
    test_source: Sources | None = None,
    columns: Mapping[str, str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    valid: float = 0.1,
    test: float = 0.0,
    seed: int = 42,
    tokenizer: str | Path | None = None,
    vocab_size: int = 8192,
    max_seq_len: int = 192,
    num_workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Make the folder `out` that `--dataset` of `scripts/pretrain_text.py` names, and return it.

    Args:
        source: files or folders of pairs, see `convert_pairs`; or None, and a `corpus`.
        corpus: one of `corpora.CORPORA`, from pinned packages.
        valid_source, test_source: files of validation and test pairs, taken as they are; training pairs that share a
            response with them are left out.
        columns, on_error: see `convert_pairs`.
        valid, test, seed: see `split_pairs`.
        tokenizer: Hub id or folder; None: one is trained on the training pairs, with `vocab_size` tokens.
        max_seq_len: what the report says the cut of; packs hold whole texts.
        num_workers: processes that tokenize; None: one a core.

    Raises:
        CorpusError: a file, a row or a column that cannot be used; names it, and the remedy.
        FileExistsError: `out` is there.
        ValueError: neither or both of `source` and `corpus`.
    """
    out = Path(out).absolute()
    if (source is None) == (corpus is None):
        raise ValueError("give the files of a corpus, or the name of one (corpus='wordnet'), and not both")
    check_free(out, "a folder of prepared text", SIGN, overwrite=overwrite)
    for files in (source, valid_source, test_source):
        if files is not None:
            pairs_files(files)  # what is not there is said before an hour of converting
    convert = partial(convert_pairs, columns=columns, on_error=on_error, overwrite=True, quiet=quiet)
    with staging_of(out) as staging:
        work, pairs = staging / "prepared", staging / "pairs.parquet"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if source is None:
            converted = write_corpus(str(corpus), pairs, overwrite=True, quiet=quiet)
        else:
            converted = convert(source, pairs)
        logger.info("%s", converted)
        given: dict[str, Path] = {}
        for name, files in (("valid_source", valid_source), ("test_source", test_source)):
            if files is not None:
                given[name] = staging / f"{name}.parquet"
                logger.info("%s", convert(files, given[name]))
        splits = _split(pairs, work, valid=valid, test=test, seed=seed, quiet=quiet, **given)
        if tokenizer is None:
            train_tokenizer(work / "train.parquet", work / "tokenizer", vocab_size=vocab_size, seed=seed, quiet=quiet)
        else:
            _copy_tokenizer(tokenizer, work / "tokenizer")
        _report(pairs, converted, splits, work, max_seq_len, quiet)
        for split in work.glob("*.parquet"):
            target = work / "tokens" / split.stem
            packed = pack_pairs(split, target, work / "tokenizer", num_workers=num_workers, quiet=quiet)
            logger.info("%s: %d pairs, %d tokens", split.stem, packed.num_documents, packed.num_tokens)
        publish(work, out)
    return out


def _split(pairs: Path, work: Path, **settings: Any) -> SplitSummary:
    """The splits as files of `work` itself."""
    splits = split_pairs(pairs, work / "splits", **settings)
    logger.info("%s", splits)
    for path in (work / "splits").iterdir():
        path.rename(work / path.name)
    (work / "splits").rmdir()
    return splits


def _copy_tokenizer(name: str | Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer {name} names no pad token: set `pad_token` in its tokenizer_config.json")
    tokenizer.save_pretrained(folder)


def _report(
    pairs: Path, converted: ConversionSummary, splits: SplitSummary, work: Path, max_seq_len: int, quiet: bool
) -> None:
    """On all rows there were, those among them that are no pairs."""
    tokenizer = Tokenizer.from_str(PackingTokenizer.of(work / "tokenizer").definition)  # which does not cut
    report = inspect_pairs(pairs, tokenizer=tokenizer, max_seq_len=max_seq_len, quiet=quiet)
    report.files = converted.sources
    report.num_rows += converted.skipped.total()
    report.rejected += converted.skipped
    report.splits = splits.num_rows
    report.save(work)
    logger.info("%s", report)
