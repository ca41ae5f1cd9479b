"""Spelling to sounds: what phonemizers give, that they are repeatable anywhere, and what happens without them."""

import multiprocessing
import subprocess
import sys
import threading
import unicodedata

import pytest

from qwen_term_retrieval.text.phonetics import (
    EspeakPhonemizer,
    GraphemeToPhoneme,
    PhonemizerError,
    _espeak_lock,
    get_phonemizer,
    register_phonemizer,
)

NAMES = ["espeak:en-us", "espeak:de", "cmudict", "characters"]
TEXTS = ["atrial fibrillation", "folder 7", "HTTP", "Dr. Smith, of course", "Łódź naïve", "x" * 300, "C++"]


@pytest.mark.parametrize("name", NAMES)
def test_every_symbol_is_in_the_phonemizers_own_inventory(name):
    phonemizer = get_phonemizer(name)
    assert len(set(phonemizer.symbols)) == len(phonemizer.symbols)
    for text, symbols in zip(TEXTS, phonemizer.phonemes(TEXTS), strict=True):
        assert symbols, text
        assert set(symbols) <= set(phonemizer.symbols), text


def test_espeak_gives_sounds_without_stress_and_keeps_diphthongs_whole():
    assert get_phonemizer("espeak:en-us").phonemes(["atrial judge", "cheese"]) == [
        ["eɪ", "t", "ɹ", "ɪ", "ə", "l", "dʒ", "ʌ", "dʒ"],
        ["tʃ", "iː", "z"],
    ]


def test_espeak_spells_digits_and_reads_every_clause():
    digits, words, clauses, both = get_phonemizer("espeak:en-us").phonemes(
        ["folder 7", "folder seven", "stop. go, now; yes", "stop go now yes"]
    )
    assert digits == words
    assert clauses == both


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_heard_gives_no_symbols(name):
    assert get_phonemizer(name).phonemes(["", " \t", "…"]) == [[], [], []]


def test_a_text_sounds_the_same_alone_and_among_others_and_after_another_voice():
    phonemizer = get_phonemizer("espeak:en-us")
    together = phonemizer.phonemes(TEXTS)
    get_phonemizer("espeak:de").phonemes(["Straße"])
    assert [phonemizer.phonemes([text])[0] for text in TEXTS] == together


def test_cmudict_spells_and_counts_the_words_it_lacks():
    phonemizer = get_phonemizer("cmudict")
    before = phonemizer.num_unknown_words
    assert phonemizer.phonemes(["judge 7", "qwzx"]) == [["JH", "AH", "JH", "S", "EH", "V", "AH", "N"], list("qwzx")]
    assert phonemizer.num_unknown_words == before + 1


def test_characters_split_accents_off_their_letters():
    assert get_phonemizer("characters").phonemes(["Né 2"]) == [["n", "e", "\u0301", "t", "w", "o"]]


@pytest.mark.parametrize("name", ["espeak:en-us", "espeak:fr", "cmudict", "characters"])
def test_a_term_sounds_the_same_however_its_accents_are_encoded(name):
    phonemizer = get_phonemizer(name)
    composed, apart = (unicodedata.normalize(form, "naïve café Łódź") for form in ("NFC", "NFD"))
    assert composed != apart
    assert phonemizer.phonemes([composed]) == phonemizer.phonemes([apart])


def test_threads_do_not_mix_their_voices():
    english, german = get_phonemizer("espeak:en-us"), get_phonemizer("espeak:de")
    expected = {"en": english.phonemes(TEXTS * 20), "de": german.phonemes(TEXTS * 20)}
    given = {}

    def run(name, phonemizer):
        given[name] = phonemizer.phonemes(TEXTS * 20)

    threads = [threading.Thread(target=run, args=pair) for pair in (("en", english), ("de", german))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == expected


def _phonemes_in_child(queue):
    queue.put(get_phonemizer("espeak:en-us").phonemes(TEXTS))


@pytest.mark.skipif(sys.platform == "win32", reason="fork is a Unix call")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_forked_while_another_thread_speaks_can_speak():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with _espeak_lock:
        child = context.Process(target=_phonemes_in_child, args=(queue,))
        child.start()
    given = queue.get(timeout=30)
    child.join(timeout=30)
    assert given == get_phonemizer("espeak:en-us").phonemes(TEXTS)


def test_fingerprints_tell_phonemizers_apart():
    assert len({get_phonemizer(name).fingerprint() for name in NAMES}) == len(NAMES)


def test_names_that_nobody_has_say_what_there_is():
    with pytest.raises(ValueError, match=r"no phonemizer 'festival:en'; there are \['characters', 'cmudict', 'espeak'"):
        get_phonemizer("festival:en")
    with pytest.raises(PhonemizerError, match="espeak-ng has no voice 'xx-nowhere'"):
        get_phonemizer("espeak:xx-nowhere")
    with pytest.raises(ValueError, match="characters has no variants"):
        get_phonemizer("characters:upper")


def test_a_missing_package_says_how_to_install_it():
    script = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from qwen_term_retrieval.text.phonetics import get_phonemizer\n"
        "get_phonemizer('espeak:en-us')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 'pip install "qwen_term_retrieval[phonemes]"' in done.stderr.splitlines()[-1]


def test_a_phonemizer_of_ones_own_can_be_registered():
    class Reversed(GraphemeToPhoneme):
        name, symbols = "reversed", tuple("abc")

        def phonemes(self, texts):
            return [list(reversed(text)) for text in texts]

    register_phonemizer("reversed")(lambda variant: Reversed())
    assert get_phonemizer("reversed").phonemes(["abc"]) == [["c", "b", "a"]]


@pytest.mark.parametrize("text", ["perchance to dream..", "U.S..", "dream...", ".."])
def test_full_stops_at_the_end_are_no_sound_of_what_is_said_next(text):
    phonemizer = EspeakPhonemizer("en-us")
    alone, _, after = phonemizer.phonemes(["tension", text, "tensions"])
    assert after[: len(alone)] == alone
