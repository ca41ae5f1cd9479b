"""Several phonemizers as one: a language each for the terms of a mixed glossary, and several pronunciations a term.

"data" is said in two ways, "Paris" in one way by an English speaker and in another by a French one. A `Pronouncer` asks
the phonemizer of each term's language for one pronunciation or all of them, and joins the symbols that they can give.
What is not spelled as it is said, "5 mg" or "IL-6", is written out before (`spoken.py`); a text in double brackets is
sounds already, "[[ɡ aʊ t]]".

One rule for languages: a `Pronouncer` that is given `languages` refuses the ones it does not know; one that is given
none says every text in the same way, whatever its language is said to be.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.languages import language_code, primary_language
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, get_phonemizer
from qwen_term_retrieval.text.scripts import scripts_in
from qwen_term_retrieval.text.spoken import AsSaid, spoken_forms
from qwen_term_retrieval.text.ways import Ways

logger = logging.getLogger(__name__)

_OR = "|"
# In a pronunciation by hand: stress, syllables, ties and hyphens.
_NO_SOUND = re.compile(r"[ˈˌ'.‿|_͡-]|(?<=[A-Z])[012]")


class Pronouncer:
    """Texts in, pronunciations out.

    Args:
        phonemizer: of terms without a language and of those in its own: "en" and "en-AU" are said by "espeak:en-us".
            Several joined by "|", such as "espeak:en-us|espeak:en-gb-x-rp", give a term a pronunciation each.
        languages: the phonemizers of other languages by their codes, such as `{"fr": "espeak:fr"}`; "fr-CA" is said by
            that of "fr" where it has none of its own.
        several: all pronunciations of a term, or the first alone.

    Raises:
        ValueError: a phonemizer is unknown, or several are given where one pronunciation is wanted.
        PhonemizerError: a phonemizer cannot be had on this machine.

    Example:
        >>> Pronouncer("characters", several=False).pronunciations(["ox"])
        [[['o', 'x']]]
    """

    def __init__(self, phonemizer: str, languages: Mapping[str, str] | None = None, *, several: bool = False):
        names: dict[str | None, str] = {None: phonemizer}
        # Sorted, as a saved config is: the fingerprint must not depend on the order in which they were named.
        names.update(sorted((languages or {}).items()))
        self._names, self._several = names, several
        self._phonemizers: dict[str | None, list[GraphemeToPhoneme]] = {}
        for language, name in names.items():
            if _OR in name and not several:
                raise ValueError(f'{name!r} gives several pronunciations a term: set heteronyms="mean" as well')
            self._phonemizers[language] = [get_phonemizer(part.strip()) for part in name.split(_OR)]
        every = [one for many in self._phonemizers.values() for one in many]
        # By the code of a language, its name in `_phonemizers`: the default's own language has none.
        own_languages: dict[str | None, str | None] = {one.language: None for one in self._phonemizers[None]}
        self._spoken_as = own_languages | {language_code(name): name for name in self._phonemizers}
        self.symbols = tuple(dict.fromkeys(symbol for one in every for symbol in one.symbols))
        self._number_of = {symbol: number for number, symbol in enumerate(self.symbols)}
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._symbol = re.compile("|".join(map(re.escape, longest_first)))

    def fingerprint(self) -> str:
        """As `GraphemeToPhoneme.fingerprint`, of all phonemizers and their languages; of a single one it is its own."""
        prints = {language: [one.fingerprint() for one in many] for language, many in self._phonemizers.items()}
        if list(prints) == [None] and len(prints[None]) == 1:
            return prints[None][0]
        joined = "|".join(f"{language or ''}:{','.join(many)}" for language, many in prints.items())
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def pronunciations(
        self, texts: Sequence[str], languages: Sequence[str | None] | None = None
    ) -> list[list[list[str]]]:
        """The pronunciations of each text, at least one, of which one may be empty.

        Args:
            texts: terms.
            languages: the code of each one's language, None where it is not known; see the module for the rule.

        Raises:
            ValueError: a language has no phonemizer, or a text in brackets holds what is no symbol; names the text.
        """
        if languages is None:
            languages = [None] * len(texts)
        name_of: dict[str | None, str | None] = {}
        for language in dict.fromkeys(languages):
            if not self.reads(language):
                raise ValueError(f"{texts[list(languages).index(language)]!r}: {self.unknown_language(language)}")
            name_of[language] = self._name_of(language)
        rows_of: dict[str | None, list[int]] = {}
        for row, language in enumerate(languages):
            rows_of.setdefault(name_of[language], []).append(row)
        spoken: list[list[list[str]]] = [[] for _ in texts]
        for name, rows in rows_of.items():
            forms = [(row, form) for row in rows for form in self._forms(texts[row], languages[row])]
            own = [form for _, form in forms]
            for phonemizer in self._phonemizers[name]:
                ways = phonemizer.pronunciations(own) if self._several else [[p] for p in phonemizer.phonemes(own)]
                for (row, _), found in zip(forms, ways, strict=True):
                    spoken[row] += [way for way in found if way not in spoken[row]]
        for row, text in enumerate(texts):
            if is_sounds(text):
                spoken[row] = [self.parse_sounds(text)]
        return spoken

    def ways(self, texts: Sequence[str], languages: Sequence[str | None] | None = None) -> Ways:
        """`pronunciations` as arrays; a symbol's number is its place in `symbols`."""
        return Ways.of(self.pronunciations(texts, languages), self._number_of)

    def agrees(self, other: Pronouncer) -> bool:
        """Whether the other has the same phonemizers, whether one of them gives all ways and the other the first."""
        return self._names == other._names

    def _forms(self, text: str, language: str | None) -> Sequence[str]:
        """What is given to a phonemizer for a text."""
        if is_sounds(text):
            return ()
        forms = spoken_forms(text, language)
        return forms if self._several else forms[:1]

    def parse_sounds(self, text: str) -> list[str]:
        """The symbols of a pronunciation, `[[k uː b]]`; stress, dots and spaces are no symbols of their own.

        Raises:
            ValueError: it holds something else, or nothing; names it, and symbols there are.
        """
        sounds = _NO_SOUND.sub("", text.removeprefix("[[").removesuffix("]]"))
        if "g" not in self.symbols:
            sounds = sounds.replace("g", "ɡ")  # the letter of keyboards for that of IPA
        symbols: list[str] = []
        rest = ""
        for part in sounds.split():
            symbols += self._symbol.findall(part)
            rest += self._symbol.sub("", part)
        if rest or not symbols:
            raise ValueError(
                f"the pronunciation /{text.strip('[]')}/ "
                + (f"holds {rest[:10]!r}, which the model has no sound for" if rest else "holds no sound")
                + f"; write it with {' '.join(self.symbols[:60])} …, or as a respelling without slashes"
            )
        return symbols

    def unread(self, text: str, language: str | None = None) -> str:
        """The letters of a text that its phonemizers cannot say, or say by their names alone."""
        if is_sounds(text) or text.isascii() or not self.reads(language):
            return ""
        return min((one.unread(text) for one in self._phonemizers[self._name_of(language)]), key=len)

    def reads(self, language: str | None) -> bool:
        """Whether texts in this language can be pronounced."""
        return len(self._phonemizers) == 1 or self._code(language) in self._spoken_as

    def has_own(self, language: str | None) -> bool:
        """Whether texts in this language are said otherwise than those without one."""
        return self.reads(language) and self._name_of(language) is not None

    def unknown_language(self, language: str | None) -> str:
        """What to tell the user about a language that cannot be pronounced: what there is, and the remedy."""
        known, code = sorted(filter(None, self._phonemizers)), language_code(language)
        return (
            f"no phonemizer for {language!r}: the 'languages' of text_tower_config name {known}. "
            f'Train with {{"{code}": "espeak:{code}"}} among them'
        )

    def _name_of(self, language: str | None) -> str | None:
        return None if len(self._phonemizers) == 1 else self._spoken_as[self._code(language)]

    def _code(self, language: str | None) -> str | None:
        """The code that a language is known by here: its own, or that without the region."""
        code = language_code(language)
        return code if code in self._spoken_as else primary_language(code)


def is_sounds(text: str) -> bool:
    """Whether a text is sounds in double brackets; what somebody wrote so in a transcript is none."""
    return isinstance(text, AsSaid) and text.startswith("[[") and text.endswith("]]")


def check_glossary(glossary: Glossary, pronouncer: Pronouncer) -> None:
    """See that all terms of a glossary can be pronounced as they ask for.

    Raises:
        ValueError: a language has no phonemizer, or a pronunciation other sounds; names the glossary, the language or
            term, how many there are, the first, and the remedy.
    """
    languages = glossary.languages
    for language in dict.fromkeys(languages):
        if not pronouncer.reads(language):
            raise ValueError(
                f"{glossary.source}: {languages.count(language)} terms are in {language!r}, the first is "
                f"{glossary.texts[languages.index(language)]!r}: {pronouncer.unknown_language(language)}."
            )
    for term in glossary:
        for sounds in filter(is_sounds, term.pronunciations):
            try:
                pronouncer.parse_sounds(sounds)
            except ValueError as error:
                raise ValueError(f"{glossary.source}, {term.text!r}: {error}") from error


def unspeakable(terms: Iterable[Term], pronouncer: Pronouncer) -> tuple[list[Term], list[Term]]:
    """Terms of which nothing can be said, and those of which a part cannot, by what their letters are."""
    nothing, a_part = [], []
    for term in terms:
        if term.text.isascii():
            continue
        unread = [pronouncer.unread(way, term.language) for way in term.sayings]
        letters = [sum(map(str.isalpha, way)) for way in term.sayings]
        if all(one and len(one) >= many for one, many in zip(unread, letters, strict=True)):
            nothing.append(term)
        elif all(unread):
            a_part.append(term)
    return nothing, a_part


def speakable(glossary: Glossary, pronouncer: Pronouncer) -> Glossary:
    """A glossary without the terms of which nothing can be said; warns of them, and of those that are said in part.

    Raises:
        ValueError: nothing can be said of any term.
    """
    nothing, a_part = unspeakable(glossary, pronouncer)
    if not nothing and not a_part:
        return glossary
    wrong = [*nothing, *a_part]
    found = (
        f"{glossary.source}: {len(wrong)} of {len(glossary)} terms are written in "
        f"{', '.join(scripts_in(term.text for term in wrong)[:3])}, which this model cannot read, such as "
        f"{', '.join(repr(term.text) for term in wrong[:3])}"
    )
    remedy = (
        "Give them a pronunciation ('pronunciations': ['toe kyo'], or sounds as '/t oʊ k i oʊ/'), an alias in letters "
        "that it reads, or take a model of their language"
    )
    if len(nothing) == len(glossary):
        raise ValueError(f"{found}: nothing can be said of any. {remedy}.")
    left_out = f"; {len(nothing)} are left out" if nothing else ""
    in_part = f"; of {len(a_part)} a part is said" if a_part else ""
    logger.warning("%s%s%s. %s", found, left_out, in_part, remedy)
    return glossary.without({term.term_id for term in nothing}) if nothing else glossary
