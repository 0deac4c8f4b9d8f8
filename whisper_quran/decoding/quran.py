"""The Qur'an as a closed text: a passage is a surah, and a run of words is a place from an ayah to an ayah."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from ..data.text import normalize
from .closed_text import ClosedText, Run

_ISTIADHA = "أعوذ بالله من الشيطان الرجيم"
# Phrases that are also said after a recitation, or in prayer.
_OTHER_PHRASES = ("صدق الله العظيم", "الله أكبر", "سمع الله لمن حمده", "سبحان ربي العظيم", "سبحان ربي الأعلى", "آمين",
          "السلام عليكم ورحمة الله")  # fmt: skip
# The disconnected letters (muqatta'at) that open some surahs are pronounced as the names of the letters.
_OPENINGS = set("الم المص الر المر كهيعص طه طسم طس يس ص حم عسق ق ن".split())
_NAMES = dict(zip("المصركهيعطسحقن", "الف لام ميم صاد را كاف ها يا عين طا سين حا قاف نون".split(), strict=True))
_OPENING_WORDS = 60  # of a surah, indexed with these letters as pronounced
_AYAT_WITH_ISTIADHA_WORDS = ((16, 98), (113, 1), (114, 1))


@dataclass(frozen=True, order=True)
class Place:
    """A span of a surah's words, both ends included: ayat by their numbers, words of an ayah counted from 1."""

    surah: int
    first_ayah: int
    first_word: int
    last_ayah: int
    last_word: int


class Quran(ClosedText):
    """The text of ``texts`` (by surah and ayah). A basmala or an isti'adha, or both, may be said before any run."""

    def __init__(self, texts: Mapping[tuple[int, int], str]) -> None:
        ayat: dict[int, list[tuple[int, str]]] = {}
        for (surah, ayah), text in sorted(texts.items()):
            if text.strip():
                ayat.setdefault(surah, []).append((ayah, text))
        self.surahs = list(ayat)
        # For each surah, the (ayah, word) of every word.
        self.numbers = [
            [(ayah, word + 1) for ayah, text in ayat[surah] for word in range(len(text.split()))] for surah in ayat
        ]
        passages = [" ".join(text for _, text in ayat[surah]) for surah in ayat]
        super().__init__(passages, prefaces(texts))
        self.apart = (self.prefaces[0], *_OTHER_PHRASES)  # the isti'adha; the basmala is an ayah
        self.verses = [[ayah for ayah, _ in numbers] for numbers in self.numbers]
        for number, words in enumerate(self.passages):
            opening = [_spoken(word) for word in words[:2]]
            if opening[0] != words[0]:
                spoken = [*opening, *words[2:_OPENING_WORDS]]
                self.spoken.append((Run(number, 0, len(spoken) - 1), spoken))

    def place(self, run: Run) -> Place:
        """Return the place of ``run``."""
        numbers = self.numbers[run.passage]
        return Place(self.surahs[run.passage], *numbers[run.first], *numbers[run.last])

    def ayat(self, run: Run) -> list[tuple[int, int]]:
        """Return the (surah, ayah) of every ayah that ``run`` has words of."""
        place = self.place(run)
        return [(place.surah, ayah) for ayah in range(place.first_ayah, place.last_ayah + 1)]

    def describe(self, run: Run) -> str:
        """Write ``run`` as its first and its last word, each as surah:ayah:word."""
        surah, *first_and_last = astuple(self.place(run))
        return "{0}:{1}:{2}-{0}:{3}:{4}".format(surah, *first_and_last)


def _spoken(word: str) -> str:
    letters = normalize(word, "full")
    return "".join(_NAMES[letter] for letter in letters) if letters in _OPENINGS else word


def prefaces(texts: Mapping[tuple[int, int], str]) -> list[str]:
    """Return the phrases that may be said before any part of the Qur'an, in the spelling of ``texts``.

    The isti'adha's words are spelled as in the ayat of ``texts`` that contain them, if there are any.
    """
    plain = {normalize(word, "full"): word for word in _ISTIADHA.split()}
    spelled = dict(plain)
    for key in _AYAT_WITH_ISTIADHA_WORDS:
        for word in texts.get(key, "").split():
            if normalize(word, "full") in plain:
                spelled[normalize(word, "full")] = word
    istiadha = " ".join(spelled.values())
    basmala = texts.get((1, 1), "")
    return [istiadha, basmala, f"{istiadha} {basmala}"] if basmala else [istiadha]
