"""Short English texts as people say them: phrases, instructions, numbers, letters; drawn from a seeded generator.

The words are common ones and the patterns general; nothing is copied from any recorded prompt. Callers that test on
recorded prompts pass their texts to `exclude` wherever texts are drawn.
"""

from __future__ import annotations

import random
import re

from num2words import num2words


def _split(words: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(words.split(separator))


_VERBS = _split(
    "add allow answer ask block book bring buy cancel carry change check choose clean clear close collect connect "
    "continue copy count cut describe dial disable draw drop enable enter find finish fix follow forward give guess "
    "hear help hide hold ignore install invite join keep leave lift listen load lock lower mark measure mix move mute "
    "name notify open order pack paint pause pick play print pull push raise read reach rebuild receive record redial "
    "refuse remove rename repeat replace reply report reset restart return review ring save search select sell send "
    "set share show sign skip sort spell start stop store switch take talk tell test transfer translate try turn "
    "type unlock update verify visit wait wash watch weigh write"
)
_NOUNS = _split(
    "account address alarm amount answer apple archive bag balance battery bell bill board body book bottle box branch "
    "bridge bus button call camera car card carrier case cell center chair channel charge city clock code computer "
    "connection contact corner country cup customer date deal delivery desk device dinner directory doctor document "
    "door email engine entry error event extension family field file flight floor folder form friend garden gate group "
    "guest home hotel hour house hospital key kitchen lamp language letter level library light line link list machine "
    "market meeting member menu minute mobile month morning music name network night note notice number office "
    "officer operator option order page paper parcel park party passenger password patient payment person phone photo "
    "plan plane player pocket police pool power price printer problem program question queue radio reason receipt "
    "record report request result river road room school screen seat server service set shop signal sound speaker "
    "square staff star station step stop story street student subject supply support system table task tax teacher "
    "telephone test ticket time tone top tower town track traffic train trip user video village visitor voice volume "
    "wall watch water week wheel window wire word work worker year zone"
)
_STATES = _split(
    "active asleep available back bad better blank blocked blue broken busy cheap clean clear closed cold correct "
    "dark dead different difficult disabled down dry early easy empty enabled expired fast fine finished free full "
    "gone good green here high hot idle important in incorrect invalid late locked lost loud low missing muted new "
    "noisy normal off offline old on online open out over paused pending quiet ready recorded red rejected safe short "
    "silent slow soft sold strange strong there tired unavailable unknown unlocked unread up urgent valid warm weak "
    "wet wrong yellow"
)
_TIMES = _split(
    "again; now; later; today; tomorrow; yesterday; tonight; this week; next month; every day; in the morning; "
    "at noon; at midnight; before lunch; after dinner; at once; soon; once more; right away; twice",
    "; ",
)
_WHO = _split("I you we they he she it everyone nobody somebody")
_COLLOQUIAL = _split(
    "good evening; see you; of course; not at all; never mind; no problem; you are welcome; excuse me; how much is it; "
    "what is that; who is there; where are you; come in; sit down; hurry up; take care; well done; go ahead; go on; "
    "let me see; let us go; I do not know; I think so; I hope not; as you like; a little more; that is all; "
    "what time is it; how are you; nice to meet you; long time no see; all right; be careful; look out",
    "; ",
)
_NATO = _split(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey yankee zulu"
)
_MONTHS = _split(
    "January February March April May June July August September October November December Monday Tuesday Wednesday "
    "Thursday Friday Saturday Sunday"
)
_UNITS = _split(
    "dollars cents minutes hours seconds days weeks years miles meters percent degrees people messages calls items "
    "pages times pounds grams bytes"
)
_JOINS = ("or", "and", "to", "of")
_DIGITS = ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PATTERNS = _split(
    "please {verb} the {noun}; {verb} the {noun} {time}; {verb} the {noun}; {verb} your {noun}; {verb} {time}; "
    "please {verb} {time}; to {verb} the {noun}; {verb} or {verb2}; do not {verb} the {noun}; the {noun} is {state}; "
    "the {noun} is {state} {time}; your {noun} is {state}; {noun} {state}; {noun} is {state}; all {nouns} {state}; "
    "{state} {noun}; {state} {nouns}; no {noun}; no {state} {noun}; {noun} {noun2}; {noun} {noun2} {state}; "
    "the {noun} {noun2}; {noun} of the {noun2}; {noun} and {noun2}; {noun} number {number}; {noun} {number}; "
    "{number} {nouns}; {number} {unit}; {who} {verb} the {noun}; can {who} {verb} {time}; {who} must {verb} it; "
    "with the {noun}; at the {noun}; for your {noun}; from {noun} to {noun2}; to the {noun}; {verb} it {time}",
    "; ",
)
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")


def everyday_phrase(rng: random.Random) -> str:
    """A short instruction, notice or noun phrase of common words."""
    if rng.random() < 0.02:
        return rng.choice(_COLLOQUIAL)
    noun = rng.choice(_NOUNS)
    return rng.choice(_PATTERNS).format(
        noun=noun,
        nouns=_plural(noun),
        verb=rng.choice(_VERBS),
        verb2=rng.choice(_VERBS),
        noun2=rng.choice(_NOUNS),
        state=rng.choice(_STATES),
        time=rng.choice(_TIMES),
        who=rng.choice(_WHO),
        number=_cardinal(rng.randrange(1, 100)),
        unit=rng.choice(_UNITS),
    )


def fragment(example: str, rng: random.Random, max_words: int = 6) -> str | None:
    """Two to `max_words` consecutive words of a sentence, often its first; None where it holds more than words."""
    words = example.rstrip(".!?").split()
    if len(words) < 2 or not all(_WORD.fullmatch(word) for word in words):
        return None
    length = rng.randint(2, max_words)
    if len(words) <= length:
        return " ".join(words)
    first = 0 if rng.random() < 0.4 else rng.randrange(len(words) - length + 1)
    return " ".join(words[first : first + length])


def number_phrase(rng: random.Random) -> str:
    """Cardinals, ordinals, digit sequences, clock times, dates and numbers with units, spelled out."""
    kinds = (
        lambda: _cardinal(rng.randrange(10, 100)),
        lambda: _cardinal(rng.randrange(100, 1000)),
        lambda: _cardinal(rng.randrange(1000, 10000)),
        lambda: _plain(num2words(rng.randrange(1, 100), to="ordinal")),
        lambda: " ".join(rng.choices(_DIGITS, k=rng.randint(2, 3))),
        lambda: " ".join(rng.choices(_DIGITS, k=rng.randint(4, 6))),
        lambda: (
            f"{_cardinal(rng.randrange(1, 13))} {_cardinal(rng.randrange(10, 60))} {rng.choice(('', 'a m', 'p m'))}"
        ),
        lambda: f"{rng.choice(_MONTHS)} {_plain(num2words(rng.randrange(1, 32), to='ordinal'))}",
        lambda: f"{_cardinal(rng.randrange(1, 100))} {rng.choice(_UNITS)}",
        lambda: f"{_cardinal(rng.randrange(20))} point {' '.join(rng.choices(_DIGITS[2:], k=rng.randint(1, 2)))}",
        lambda: f"{_cardinal(rng.randrange(1, 100))} {rng.choice(_JOINS)} {_cardinal(rng.randrange(100))}",
    )
    return rng.choice(kinds)().strip()


def letter_phrase(rng: random.Random) -> str:
    """Letters spelled out, alone or with numbers, and the words that stand for letters."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    kinds = (
        lambda: rng.choice(letters),
        lambda: " ".join(rng.choices(letters, k=2)),
        lambda: " ".join(rng.choices(letters, k=rng.randint(3, 5))),
        lambda: f"{rng.choice(letters)} {_cardinal(rng.randrange(100))}",
        lambda: f"letter {rng.choice(letters)}",
        lambda: " ".join(rng.choices(_NATO, k=rng.randint(1, 3))),
    )
    return rng.choice(kinds)()


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else noun + "s"


def _cardinal(number: int) -> str:
    return _plain(num2words(number))


def _plain(words: str) -> str:
    return words.replace("-", " ").replace(",", "")
