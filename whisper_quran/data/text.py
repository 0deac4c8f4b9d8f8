"""Text: what of it is recited, target tokens for training, and normalisation for error rates.

Every text enters through :func:`recited`, so that training, error rates, places and word times see the same words.
"""

import gzip
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rapidfuzz.distance import Levenshtein

if TYPE_CHECKING:  # importing whisper imports torch, which takes seconds
    from whisper.tokenizer import Tokenizer

Normalization = Literal["diacritics", "full", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("diacritics", "full", "none")

BASMALA = "بسم الله الرحمن الرحيم"

_PRESENTATION_FORMS = re.compile("[\ufb50-\ufd3d\ufd50-\ufdfc\ufe70-\ufefc]")
# Letters of Persian, Urdu and Maghribi keyboards and fonts; U+FDFD is the basmala as one character.
_LETTERS = str.maketrans("یېےۓکڪہەھۂۃۀںڢڡڧٮٯ", "يييئككههههةهنففقبق") | {0xFDFD: BASMALA}
_FINAL_ALEF = re.compile("(?<=[\u064e\u0670])ی(?!\\w|[\u064b-\u065f\u06e1])")  # after a fatha: ى, not ي
_SEAT = re.compile("\u0640([\u064b-\u0653\u0670\u06d6-\u06ed]*)\u0654")  # a hamza on a tatweel
# Tatweel, zero-width and direction marks, soft hyphen, honorifics, pause marks and those of a mushaf's divisions;
# U+06DC inside a word is no pause but a reading of its letter.
_SILENT = re.compile(
    "[\u00ad\u061c\u0640\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\u0600-\u0605\u0610-\u0617\u06d6-\u06db\u08d4-\u08d7\u08da-\u08e1]|\u06dc(?!\\w|[\u064b-\u0652])"
)
_SIGNS = re.compile("[\u06dd\u06de\u06e9\u08e2\ufd3e\ufd3f]")  # of ayat, quarters and prostrations
_AYAH_NUMBER = re.compile("[\u0660-\u0669\u06f0-\u06f9]+|(?<=[\u0620-\u06ed])\\W?[0-9]+")

# Stripped in Experiment 2A's evaluation: tanwin, harakat, shadda and sukun (U+064B to U+0652). In Uthmani spelling, the
# sukun is U+06E1 and some tanwin are U+08F0 to U+08F2.
_DIACRITICS = re.compile("[\u064b-\u0652\u06e1\u08f0-\u08f2]")
_VOCALISATION = re.compile(f"{_DIACRITICS.pattern[:-1]}\u0670]")  # the diacritics, and the superscript alef
_LETTER = re.compile(f"([^{_VOCALISATION.pattern[1:-1]}])({_VOCALISATION.pattern}*)")
# `full` also strips every other combining sign of the mushaf (small high letters, maddah, hamza above and below).
_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u08d3-\u08ff]")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_VARIANTS = str.maketrans("أإآٱىة", "اااايه")
# To compare spellings: a hamza is written alone or on a seat. The first leaves the seats, the second has one letter for
# all its forms.
SEATS = _VARIANTS | str.maketrans("ؤئ", "وي", "ء")
ONE_HAMZA = _VARIANTS | str.maketrans("ؤئء", "ااا")
_UTHMANI = re.compile("[\u0671\u06e1\u06e5\u06e6]")


def recited(text: str) -> str:
    """Return the words of ``text`` that are recited, in NFC, separated by one space.

    Pause, sajdah and other signs, ayah numbers, tatweel and invisible characters are left out, and so is each word
    without a letter. Presentation forms, and the letters of other keyboards, become those of Arabic. Diacritics and
    the letters and signs of Uthmani spelling stay.
    """
    words = _AYAH_NUMBER.sub(" ", _unify(text)).split()
    return " ".join(word for word in words if any(map(str.isalpha, word)))


def _unify(text: str) -> str:
    """Fold the forms of letters, and leave out signs that are not recited; numbers and punctuation stay."""
    text = _PRESENTATION_FORMS.sub(lambda form: unicodedata.normalize("NFKC", form[0]).lstrip(" "), text)
    text = _SEAT.sub("ئ\\1", unicodedata.normalize("NFC", text))
    text = _FINAL_ALEF.sub("ى", _SIGNS.sub(" ", text))
    return unicodedata.normalize("NFC", _SILENT.sub("", text).translate(_LETTERS))


def without_basmala(text: str) -> str:
    """Return ``text`` without the basmala that it begins with, unless it is no more than that."""
    words = text.split()
    begins = " ".join(normalize(word, "full") for word in words[:4]) == BASMALA
    return " ".join(words[4:]) if begins and len(words) > 4 else text


@cache
def quran_text() -> dict[tuple[int, int], str]:
    """Return the :func:`recited` text of all 6,236 ayat by (surah, ayah); the basmala is 1:1, and before no other.

    It is Tanzil's, whose file is in the package as it was published, with its notice. All callers share the dict.
    """
    with gzip.open(Path(__file__).with_name("quran-simple-clean.txt.gz"), "rt", encoding="utf-8") as file:
        rows = [line.split("|") for line in file if line[0].isdigit()]
    texts = {(int(surah), int(ayah)): recited(text) for surah, ayah, text in rows}
    return {key: text if key[1] > 1 else without_basmala(text) for key, text in texts.items()}


@cache
def plain(text: str) -> str:
    """Return a :func:`recited` text in plain spelling, without diacritics: that of Experiment 2A.

    A whole ayah in Uthmani spelling becomes that of :func:`quran_text`, found by its consonants: 6,235 of 6,236 do. Of
    other texts, signs are taken away and letters stay.
    """
    without_signs = _VOCALISATION.sub("", text)
    if not _MARKS.search(text) and not is_uthmani(text):
        return text
    bare = _MARKS.sub("", without_signs).replace("ٱ", "ا")
    known = _by_consonants().get(_consonants(text), [])
    if without_signs in known or not known:
        return bare
    forms = [letters(text), letters(text.replace("\u0670", "ا"))]
    distances = {ayah: sum(Levenshtein.distance(letters(ayah), form) for form in forms) for ayah in known}
    ayah = min(distances, key=lambda each: distances[each])
    # A text may only share the consonants of an ayah, as ألم and لم do those of الم.
    if " " in text:
        return ayah if 3 * distances[ayah] <= sum(map(len, forms)) else bare
    return ayah if ayah == bare.replace("آ", "ا") or (distances[ayah] <= 1 and is_uthmani(text)) else bare


@cache
def _by_consonants() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in quran_text().values():
        found.setdefault(_consonants(text), []).append(text)
    return found


def _consonants(text: str) -> str:
    """Return the letters that both spellings of an ayah have: without long vowels and hamzas, double letters once."""
    kept = re.sub("[اويى ]", "", normalize(text, "full").translate(ONE_HAMZA).replace("ص", "س"))
    return re.sub(r"(.)\1+", r"\1", kept)


def is_uthmani(text: str) -> bool:
    """Return True if ``text`` has letters or signs of Uthmani spelling, as in ٱلۡفَلَقِ for الْفَلَقِ."""
    return _UTHMANI.search(text) is not None


def normalize(text: str, normalization: Normalization) -> str:
    """Normalise ``text`` for comparison: in NFC, words separated by one space; used on reference and hypothesis.

    ``none`` does no more than :func:`recited`, except that digits count as words; ``diacritics`` removes harakat,
    tanwin, shadda and sukun; ``full`` also removes superscript alef, punctuation and Qur'anic marks, and folds the
    variants of alef, ya and ta marbuta.
    """
    text = _unify(text)
    if normalization == "diacritics":
        text = _DIACRITICS.sub("", text)
    elif normalization == "full":
        text = _PUNCTUATION.sub(" ", _MARKS.sub("", text)).translate(_VARIANTS)
    elif normalization != "none":
        raise ValueError(f"unknown normalization {normalization!r}: choose from {', '.join(NORMALIZATIONS)}")
    return " ".join(word for word in text.split() if any(map(str.isalnum, word)))


def count_diacritics(text: str) -> int:
    """Count the diacritics and superscript alefs of ``text``: 0 if it is not vocalised."""
    return len(_VOCALISATION.findall(text))


def letters_of(word: str) -> tuple[str, list[str]]:
    """Split ``word`` into its letters and, one string for each, their diacritics in canonical order."""
    pairs = _LETTER.findall(_unify(word))
    return "".join(letter for letter, _ in pairs), [marks for _, marks in pairs]


def target_tokens(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the decoder's tokens for a :func:`recited` text: sot, language, transcribe, notimestamps, text, eot.

    The text is encoded with a leading space, as Whisper's own decoding writes it.
    """
    return [
        *tokenizer.sot_sequence_including_notimestamps,
        *tokenizer.encode(f" {text}", disallowed_special=()),
        tokenizer.eot,
    ]


def letters(text: str) -> str:
    """Return the letters (and digits) of ``text`` without spaces, normalised by ``full``: what the search compares."""
    return normalize(text, "full").replace(" ", "")
