"""Files of pairs to a folder that a run trains on: converted, split, looked at, tokenized and packed, in one call.

    report.txt, report.json, report.html   what the training pairs are like
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
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from qwen_term_retrieval.pretraining.text.preparation.converting import Sources, convert_pairs
from qwen_term_retrieval.pretraining.text.preparation.corpora import write_corpus
from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
from qwen_term_retrieval.pretraining.text.preparation.splitting import SPLITS, split_pairs
from qwen_term_retrieval.pretraining.text.preparation.vocabulary import train_tokenizer
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of
from qwen_term_retrieval.tokens.mmap_pairs import pack_pairs

logger = logging.getLogger(__name__)

SIGN = "report.json"


def prepare_text(
    source: Sources | None,
    out: str | Path,
    *,
    corpus: str | None = None,
    valid_source: Sources | None = None,
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
        valid_source: files of validation pairs, in place of a split.
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
    with staging_of(out) as staging:
        work = staging / "prepared"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        pairs = staging / "pairs.parquet"
        if corpus is not None:
            logger.info("%s", write_corpus(corpus, pairs, overwrite=True, quiet=quiet))
        elif source is not None:
            logger.info(
                "%s", convert_pairs(source, pairs, columns=columns, on_error=on_error, overwrite=True, quiet=quiet)
            )
        if valid_source is None:
            logger.info("%s", split_pairs(pairs, work / "splits", valid=valid, test=test, seed=seed, quiet=quiet))
        else:
            (work / "splits").mkdir()
            pairs.rename(work / "splits" / "train.parquet")
            convert_pairs(valid_source, work / "splits/valid.parquet", columns=columns, on_error=on_error, quiet=quiet)
        splits = [name for name in SPLITS if (work / "splits" / f"{name}.parquet").is_file()]
        for name in splits:
            (work / "splits" / f"{name}.parquet").rename(work / f"{name}.parquet")
        (work / "splits").rmdir()
        name_or_folder = tokenizer or work / "tokenizer"
        if tokenizer is None:
            train_tokenizer(work / "train.parquet", work / "tokenizer", vocab_size=vocab_size, seed=seed, quiet=quiet)
        else:
            _copy_tokenizer(tokenizer, work / "tokenizer")
        own = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
        report = inspect_pairs(work / "train.parquet", tokenizer=own, max_seq_len=max_seq_len, quiet=quiet)
        report.files = [f"{out.name}/train.parquet"]
        report.save(work)
        for name in splits:
            packed = pack_pairs(
                work / f"{name}.parquet", work / "tokens" / name, name_or_folder, num_workers=num_workers, quiet=quiet
            )
            logger.info("%s: %d pairs, %d tokens", name, packed.num_documents, packed.num_tokens)
        logger.info("%s", report)
        publish(work, out)
    return out


def _copy_tokenizer(name: str | Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
