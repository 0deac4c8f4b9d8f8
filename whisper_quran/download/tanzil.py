"""The text: Tanzil's ``simple-clean`` edition, as used in Experiment 2A, and its licence.

Tanzil writes the basmala before the first ayah of every surah except 1 (where it is the first ayah) and 9. EveryAyah's
recordings and the published text do not have it there, so it is removed; 27:30 keeps its own.
"""

import csv
import re
from pathlib import Path

from ..runtime.files import atomic_write, make_folder
from .http import Client, FetchError, cannot_fetch
from .reciters import ALL, Key, ayat_of

TANZIL = "https://tanzil.net/pub/download/index.php?quranType=simple-clean&outType=txt-2&agree=true"

_BASMALA = "بسم الله الرحمن الرحيم "
# Diacritics and pause marks, which the requested edition does not have.
_MARKS = re.compile("[\u064b-\u065f\u0670\u06d6-\u06ed]")


def fetch_text(client: Client, url: str, folder: Path) -> None:
    """Write ``ayah_text_clear.csv`` and Tanzil's licence to ``folder``, unless the text exists."""
    path = folder / "ayah_text_clear.csv"
    if path.is_file():
        return
    make_folder(folder)
    try:
        texts, licence = client.fetch(url, parse_tanzil, sized=False)
    except FetchError as error:
        raise cannot_fetch(url, error) from error
    with atomic_write(folder / "LICENSE-tanzil.txt") as file:
        file.write(
            f"{licence}\n\nChanged in {path.name}: the basmala that Tanzil writes before the first ayah of a surah is\n"
            "left out, as the recordings leave it out.\n"
        )
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sorah", "ayah", "text"])
        writer.writerows([*key, text] for key, text in texts.items())


def parse_tanzil(body: bytes) -> tuple[dict[Key, str], str]:
    """Return the texts by (surah, ayah), and the licence, from lines ``surah|ayah|text`` and a footer of ``#`` lines.

    Raises:
        FetchError: it is not the whole text, but an error page, a part or another edition.
    """
    lines = body.decode("utf-8-sig", errors="replace").replace("\r", "").split("\n")
    licence = [line for line in lines if line.startswith("#")]
    rows = [line.split("|") for line in lines if line.strip() and not line.startswith("#")]
    keys = ayat_of(ALL)
    if [tuple(row[:2]) for row in rows] != [(str(surah), str(ayah)) for surah, ayah in keys] or not licence:
        raise FetchError(
            f"what comes is not Tanzil's text: {len(keys):,} lines surah|ayah|text and a licence were expected"
        )
    texts = {}
    for key, row in zip(keys, rows, strict=True):
        text = " ".join("|".join(row[2:]).split())
        if key[1] == 1:
            text = text.removeprefix(_BASMALA)  # 1:1 is only the basmala (without a space after it), so it stays
        if not text or _MARKS.search(text):
            raise FetchError(
                f"the text of {key[0]}:{key[1]} is empty or has diacritics: not Tanzil's simple-clean text"
            )
        texts[key] = text
    return texts, "\n".join(licence)
