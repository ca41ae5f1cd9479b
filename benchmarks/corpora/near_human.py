"""Near-human speech: 20,000 training clips by Kokoro, made over many hours, a block at a time.

    python -m benchmarks.corpora.near_human                        # outputs/near-human and packs/near-human
    python -m benchmarks.corpora.near_human --num_clips 5000       # its first 5,000; a later call goes on from them
    python -m benchmarks.corpora.near_human --workers 16           # a process of one thread each

Two seconds of one core a clip. What is rendered lies in the speech cache: a run that was stopped or killed goes on
where it was. The clips of a small corpus are the first of a large one, and `number` says which.

Half are said by the 26 English voices that are not kept for validation, half by mixtures of two of them. What is said:
terms, alone or (a third of all clips) in a sentence with known start and end; pairs of terms that sound alike, by one
voice at one speed; speech of which no term is labelled. No text of a test set is said, alone or around a term.
Validation has voices of its own, and no term that is said for training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from benchmarks.real_speech.asterisk import asterisk_texts
from benchmarks.real_speech.judged_sets import is_test_text
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.synthesis.corpus_folder import REPORT_NAME, CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.synthesis.everyday import fragment
from qwen_term_retrieval.synthesis.laptop import (
    HELD_OUT_VOICES,
    KIND_SHARES,
    SPEEDS,
    kokoro_cast,
    surroundings,
    texts_of_kinds,
)
from qwen_term_retrieval.synthesis.rendering import SpeechRequest, render
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.spellings import normalize_term
from qwen_term_retrieval.training.negatives.phonetic import phonetic_neighbours

CORPUS, PACK = Path("outputs/near-human"), Path("packs/near-human")
NUM_CLIPS = 21_000  # of which 500 are for validation
BLOCK = 500
_ALIKE_SHARE, _NO_TERM_SHARE, _SENTENCE_SHARE, _VALIDATION_SHARE = 0.1, 0.1, 0.45, 0.025
_ALIKE_POOL = 12_000
_MOST_DISTANCE = 0.4
_MOST_WORDS = 5


def near_human_rows(num_clips: int) -> list[CorpusRow]:
    """What the corpus says and who says it, without saying it.

    Raises:
        ValueError: there is not so much to say.
    """
    rows = itertools.islice(_rows(), num_clips)
    return [replace(row, extra={**row.extra, "number": number}) for number, row in enumerate(rows)]


def is_mixture(speaker: str) -> bool:
    """Whether a mixture of two voices speaks, not one of Kokoro's own."""
    return "+" in speaker


def _rows() -> Iterator[CorpusRow]:
    rng = random.Random("0/near-human")
    examples = wordlists.wordnet_examples()
    exclude = asterisk_texts()
    sources = texts_of_kinds(examples, seed=0)
    pairs = iter(_alike_pairs())
    cast = kokoro_cast(get_engine("kokoro").voices)
    voices = {mixed: [voice for voice in cast if is_mixture(voice) == mixed] for mixed in (False, True)}
    taken: set[str] = set()

    def fresh_text(kind: str) -> str:
        for text in sources[kind]:
            key = normalize_term(text)
            if 1 <= len(key.split()) <= _MOST_WORDS and key not in taken and not is_test_text(text):
                taken.add(key)
                return text
        raise ValueError(f"the texts of the kind {kind!r} have run dry: ask for fewer clips")

    def fresh_pair() -> tuple[str, str]:
        for pair in pairs:
            keys = set(map(normalize_term, pair))
            if not taken & keys:
                taken.update(keys)
                return pair
        raise ValueError("the pairs that sound alike have run dry: ask for fewer clips")

    for mixed in itertools.cycle((False, True)):
        held_out = rng.random() < _VALIDATION_SHARE
        voice = rng.choice(HELD_OUT_VOICES if held_out else voices[mixed])
        split = "validation" if held_out else "train"
        speed = rng.choice(SPEEDS)
        choice = rng.random()
        if choice < _ALIKE_SHARE:
            for text in fresh_pair():
                yield CorpusRow(SpeechRequest("kokoro", voice, text, speed), split, extra={"kind": "alike"})
        elif choice < _ALIKE_SHARE + _NO_TERM_SHARE:
            said = _speech(examples, rng)
            yield CorpusRow(
                SpeechRequest("kokoro", voice, said, speed), split, is_term=False, extra={"kind": "no term"}
            )
        else:
            kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
            text = fresh_text(kind)
            around = surroundings(text, examples, rng, exclude) if rng.random() < _SENTENCE_SHARE else ("", "")
            request = SpeechRequest("kokoro", voice, text, speed, *around)
            if not any(map(is_test_text, (request.sentence, *around))):
                yield CorpusRow(request, split, extra={"kind": kind})


def _speech(examples: list[str], rng: random.Random) -> str:
    """Up to eight words of a sentence."""
    while True:
        said = fragment(rng.choice(examples), rng, max_words=8)
        if said and not is_test_text(said):
            return said


def _alike_pairs() -> list[tuple[str, str]]:
    """Terms that sound alike, each in one pair at most, of a sample of the word lists; in an order of chance."""
    rng = random.Random("0/alike")
    lists = [wordlists.wordnet_terms(max_words=2), wordlists.medical_terms(), wordlists.place_names(max_words=2)]
    sample = [word for terms in lists for word in rng.sample(terms, min(_ALIKE_POOL // len(lists), len(terms)))]
    words = list(dict.fromkeys(word for word in sample if not is_test_text(word)))
    sounds = [tuple(ways[0]) for ways in Pronouncer("espeak:en-us").pronunciations(words)]
    nearest = phonetic_neighbours(sounds, 1)[:, 0].tolist()
    pairs, taken = [], set()
    for row in rng.sample(range(len(words)), len(words)):
        other = nearest[row]
        alike = other >= 0 and Levenshtein.normalized_distance(sounds[row], sounds[other]) <= _MOST_DISTANCE
        if alike and not taken & {row, other}:
            taken |= {row, other}
            pairs.append((words[row], words[other]))
    return pairs


def make(num_clips: int, workers: int) -> None:
    """Render a block at a time, then lay out and pack what there is."""
    if (
        CORPUS.is_dir()
        and (there := json.loads((CORPUS / REPORT_NAME).read_text())["made_from"]["num_clips"]) > num_clips
    ):
        raise SystemExit(f"{CORPUS} has {there} clips, and you asked for {num_clips}: ask for as many, or delete it")
    logging.info("choosing what %d clips say: about half a minute", num_clips)
    rows = near_human_rows(num_clips)
    for first in range(0, len(rows), BLOCK):
        block = [row.request for row in rows[first : first + BLOCK]]
        if not all(request.path.is_file() for request in block):
            logging.info("clips %d to %d of %d", first + 1, first + len(block), len(rows))
            render(block, num_workers=workers, on_error="skip")
    write_corpus(rows, CORPUS, made_from={"num_clips": num_clips}, on_error="skip", overwrite=True, num_workers=workers)
    print(pack_corpus(read_corpus(CORPUS), PACK, overwrite=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=NUM_CLIPS)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make(options.num_clips, options.workers)


if __name__ == "__main__":
    main()
