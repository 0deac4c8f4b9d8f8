"""The Qur'an as a closed text: a passage is a surah, and a run of words is a place from an ayah to an ayah."""

from collections.abc import Mapping
from dataclasses import dataclass

from whisper.tokenizer import Tokenizer

from ..data.text import normalize
from .closed_text import ClosedText, Run

_ISTIADHA = "أعوذ بالله من الشيطان الرجيم"
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

    def __init__(self, texts: Mapping[tuple[int, int], str], tokenizer: Tokenizer) -> None:
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
        super().__init__(passages, tokenizer, prefaces(texts))

    def place(self, run: Run) -> Place:
        """Return where ``run`` is."""
        numbers = self.numbers[run.passage]
        return Place(self.surahs[run.passage], *numbers[run.first], *numbers[run.last])


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
