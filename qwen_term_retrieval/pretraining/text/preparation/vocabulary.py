"""A byte-level BPE tokenizer trained on a seeded sample of pairs.

Training holds the words of its text in memory (388 MB were seen for two million characters without spaces, 946 MB for
eight), so it gets a sample of a set size, whatever the size of the corpus: which rows follows from the seed and the row
number. A vocabulary of 260 is the bytes and the special tokens alone, and learns no merges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.converting import Sources, pairs_files
from qwen_term_retrieval.pretraining.text.preparation.parquet import num_rows
from qwen_term_retrieval.pretraining.text.preparation.splitting import pairs_of
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN)
_ROWS_LOOKED_AT = 10_000


def train_tokenizer(
    source: Sources,
    out: str | Path,
    *,
    vocab_size: int = 8192,
    sample_chars: int = 4_000_000,
    seed: int = 42,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Write a folder that `AutoTokenizer` loads; returns the number of its tokens.

    Texts that it encodes end with `</s>`, as sides of pairs do in training.

    Args:
        source: Parquet files with the columns `prompt` and `response`: the training split.
        vocab_size: tokens, the 256 bytes and three special ones among them.
        sample_chars: characters of the rows it is trained on, about.
        seed: of the sample.

    Raises:
        FileExistsError: `out` is there.
        ValueError: a vocabulary smaller than the bytes.
    """
    from transformers import PreTrainedTokenizerFast

    out = Path(out).absolute()
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size}; the bytes and the special tokens are {least}")
    check_free(out, "a tokenizer", "tokenizer.json", overwrite=overwrite)
    files = pairs_files(source)
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=not quiet,
    )
    tokenizer.train_from_iterator(sampled_texts(files, sample_chars, seed, quiet=quiet), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, SPECIAL_TOKENS.index(END))]
    )
    wrapper = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    with staging_of(out) as staging:
        wrapper.save_pretrained(staging / "tokenizer")
        publish(staging / "tokenizer", out)
    return tokenizer.get_vocab_size()


def sampled_texts(files: list[Path], sample_chars: int, seed: int, *, quiet: bool = True) -> Iterator[str]:
    """Prompts and responses of rows drawn from all over the files; all of them, where they are fewer characters."""
    total = sum(map(num_rows, files))
    share = sample_chars / max(_chars_a_row(files) * total, 1)
    lot = random.Random(seed)
    for prompt, response in pairs_of(files, "sampling", quiet):
        if share >= 1 or lot.random() < share:
            yield prompt
            yield response


def _chars_a_row(files: list[Path]) -> float:
    """A mean over the first rows."""
    lengths = [
        len(prompt) + len(response)
        for _, (prompt, response) in zip(range(_ROWS_LOOKED_AT), pairs_of(files, "", True), strict=False)
    ]
    if not lengths:
        raise CorpusError(f"{files[0]} holds no pairs")
    return sum(lengths) / len(lengths)
