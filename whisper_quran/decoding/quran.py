"""The Qur'an as a closed text: a passage is a surah, and a run of words is a place from an ayah to an ayah."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from ..data.text import normalize
from .closed_text import ClosedText, Run

_ISTIADHA = "أعوذ بالله من الشيطان الرجيم"
# Said after a recitation, or in prayer, too.
_APART = ("صدق الله العظيم", "الله أكبر", "سمع الله لمن حمده", "سبحان ربي العظيم", "سبحان ربي الأعلى", "آمين",
          "السلام عليكم ورحمة الله")  # fmt: skip
# The letters that stand alone at the beginning of surahs are called by their names.
_OPENINGS = set("الم المص الر المر كهيعص طه طسم طس يس ص حم عسق ق ن".split())
_NAMES = dict(zip("المصركهيعطسحقن", "الف لام ميم صاد را كاف ها يا عين طا سين حا قاف نون".split(), strict=True))
_OPENING_WORDS = 60  # of a surah, within which a run may begin with them
_WHERE_ISTIADHA_IS_SPELLED = ((16, 98), (113, 1), (114, 1))


@dataclass(frozen=True, order=True)
class Place:
    """From which word to which of a surah: ayat as they are numbered, words of an ayah from 1, both included."""

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
        # Of each surah, which ayah and which of its words every word is.
        self.numbers = [
            [(ayah, word + 1) for ayah, text in ayat[surah] for word in range(len(text.split()))] for surah in ayat
        ]
        passages = [" ".join(text for _, text in ayat[surah]) for surah in ayat]
        super().__init__(passages, prefaces(texts))
        self.apart = (self.prefaces[0], *_APART)  # the isti'adha; the basmala is an ayah
        self.verses = [[ayah for ayah, _ in numbers] for numbers in self.numbers]
        for number, words in enumerate(self.passages):
            opening = [_spoken(word) for word in words[:2]]
            if opening[0] != words[0]:
                spoken = [*opening, *words[2:_OPENING_WORDS]]
                self.spoken.append((Run(number, 0, len(spoken) - 1), spoken))

    def place(self, run: Run) -> Place:
        """Return where ``run`` is."""
        numbers = self.numbers[run.passage]
        return Place(self.surahs[run.passage], *numbers[run.first], *numbers[run.last])

    def ayat(self, run: Run) -> list[tuple[int, int]]:
        """Return the ayat, by surah and number, that ``run`` has words of."""
        place = self.place(run)
        return [(place.surah, ayah) for ayah in range(place.first_ayah, place.last_ayah + 1)]

    def describe(self, run: Run) -> str:
        """Say where ``run`` is: its first and its last word, each as surah:ayah:word."""
        surah, *first_and_last = astuple(self.place(run))
        return "{0}:{1}:{2}-{0}:{3}:{4}".format(surah, *first_and_last)


def _spoken(word: str) -> str:
    letters = normalize(word, "full")
    return "".join(_NAMES[letter] for letter in letters) if letters in _OPENINGS else word


def prefaces(texts: Mapping[tuple[int, int], str]) -> list[str]:
    """Return what may be said before any part of the Qur'an, in the spelling of ``texts``.

    The words of the isti'adha are taken from where they stand in the Qur'an, if they do in ``texts``.
    """
    plain = {normalize(word, "full"): word for word in _ISTIADHA.split()}
    spelled = dict(plain)
    for key in _WHERE_ISTIADHA_IS_SPELLED:
        for word in texts.get(key, "").split():
            if normalize(word, "full") in plain:
                spelled[normalize(word, "full")] = word
    istiadha = " ".join(spelled.values())
    basmala = texts.get((1, 1), "")
    return [istiadha, basmala, f"{istiadha} {basmala}"] if basmala else [istiadha]
