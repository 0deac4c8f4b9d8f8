"""Text: target tokens for training, and normalisation for error rates."""

import re
import unicodedata
from typing import Literal

from whisper.tokenizer import Tokenizer

Normalization = Literal["diacritics", "full", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("diacritics", "full", "none")

# Stripped in Experiment 2A's evaluation: tanwin, harakat, shadda and sukun, U+064B to U+0652.
_DIACRITICS = re.compile("[\u064b-\u0652]")

# `full` also strips superscript alef, tatweel, every other combining sign of the mushaf (small high letters,
# pause marks, maddah, hamza above and below), end-of-ayah and rub-el-hizb signs, and punctuation.
_MARKS = re.compile(
    "[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\u08d3-\u08ff\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_VOCALISATION = re.compile("[\u064b-\u0652\u0670]")  # the diacritics, and the superscript alef
_LETTER = re.compile(f"([^{_VOCALISATION.pattern[1:-1]}])({_VOCALISATION.pattern}*)")
_FOLDED = str.maketrans({"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ی": "ي", "ة": "ه"})


def normalize(text: str, normalization: Normalization) -> str:
    """Normalise ``text`` for comparison: in NFC, words separated by one space; used on reference and hypothesis.

    ``none`` does no more than that; ``diacritics`` removes harakat, tanwin, shadda and sukun (U+064B–U+0652);
    ``full`` also removes superscript alef, tatweel, punctuation and Qur'anic marks, and folds the variants of alef,
    ya and ta marbuta.
    """
    text = unicodedata.normalize("NFC", text)
    if normalization == "diacritics":
        text = _DIACRITICS.sub("", text)
    elif normalization == "full":
        text = _PUNCTUATION.sub(" ", _MARKS.sub("", text)).translate(_FOLDED)
    elif normalization != "none":
        raise ValueError(f"unknown normalization {normalization!r}: choose from {', '.join(NORMALIZATIONS)}")
    return " ".join(text.split())


def count_diacritics(text: str) -> int:
    """Count the diacritics (U+064B–U+0652 and superscript alef) of ``text``: 0 if it is not vocalised."""
    return len(_VOCALISATION.findall(text))


def letters_of(word: str) -> tuple[str, list[str]]:
    """Split ``word`` into its letters and, one string for each, their diacritics in canonical order."""
    pairs = _LETTER.findall(unicodedata.normalize("NFC", word))
    return "".join(letter for letter, _ in pairs), [marks for _, marks in pairs]


def target_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the decoder's tokens for ``text``: sot, language, transcribe, notimestamps, text, eot.

    The text is encoded with a leading space, as Whisper's own decoding writes it.
    """
    return [
        *tokenizer.sot_sequence_including_notimestamps,
        *tokenizer.encode(" " + unicodedata.normalize("NFC", text.strip()), disallowed_special=()),
        tokenizer.eot,
    ]
