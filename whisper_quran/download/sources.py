"""What is published where: EveryAyah's reciters, the number of ayat of each surah, and Tanzil's text.

The names of reciters are EveryAyah's folder names. Only Arabic recitations of the Hafs reading with all 6,236 ayat are
listed: the text is that of Hafs, so the Warsh folders do not match it, nor do teaching recitations, in which pupils
repeat each ayah. Sizes only serve to estimate the disk space.

The text is Tanzil's ``simple-clean`` edition, as used in Experiment 2A. Tanzil writes the basmala before the first ayah
of every surah except 1 (where it is the first ayah) and 9. EveryAyah's recordings and the published text do not have it
there, so it is removed; 27:30 keeps its own.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import requests

from ..data.text import count_diacritics, recited, without_basmala
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder
from .http import CHECK_CONNECTION, FetchError, fetch

Key = tuple[int, int]  # surah, ayah

EVERYAYAH = "https://everyayah.com/data"
TANZIL = "https://tanzil.net/pub/download/index.php?quranType=simple-clean&outType=txt-2&agree=true"

# The Kufan verse count, used by the Hafs mushaf, EveryAyah and Tanzil; surah 1 first.
# fmt: off
AYAT_PER_SURAH = (
    7, 286, 200, 176, 120, 165, 206, 75, 129, 109, 123, 111, 43, 52, 99, 128, 111, 110, 98,
    135, 112, 78, 118, 64, 77, 227, 93, 88, 69, 60, 34, 30, 73, 54, 45, 83, 182, 88,
    75, 85, 54, 53, 89, 59, 37, 35, 38, 29, 18, 45, 60, 49, 62, 55, 78, 96, 29,
    22, 24, 13, 14, 11, 11, 18, 12, 12, 30, 52, 52, 44, 28, 28, 20, 56, 40, 31,
    50, 40, 46, 42, 29, 19, 36, 25, 22, 17, 19, 26, 30, 20, 15, 21, 11, 8, 8,
    19, 5, 8, 8, 11, 11, 8, 3, 9, 5, 4, 7, 3, 6, 3, 5, 4, 5, 6,
)
ALL = range(1, len(AYAT_PER_SURAH) + 1)

# Reciter and size in MiB.
KNOWN_RECITERS = {
    "Abdullaah_3awwaad_Al-Juhaynee_128kbps": 1122, "Abdullah_Basfar_192kbps": 2388, "Abdullah_Basfar_32kbps": 431,
    "Abdullah_Basfar_64kbps": 820, "Abdullah_Matroud_128kbps": 1539, "Abdul_Basit_Mujawwad_128kbps": 3048,
    "Abdul_Basit_Murattal_192kbps": 2478, "Abdul_Basit_Murattal_64kbps": 859, "Abdurrahmaan_As-Sudais_192kbps": 1722,
    "Abdurrahmaan_As-Sudais_64kbps": 579, "Abu_Bakr_Ash-Shaatree_128kbps": 1353, "Abu_Bakr_Ash-Shaatree_64kbps": 725,
    "Ahmed_ibn_Ali_al-Ajamy_128kbps_ketaballah.net": 1481, "Ahmed_ibn_Ali_al-Ajamy_64kbps_QuranExplorer.Com": 729,
    "ahmed_ibn_ali_al_ajamy_128kbps": 1426, "Ahmed_Neana_128kbps": 1656, "Akram_AlAlaqimy_128kbps": 1538,
    "Alafasy_128kbps": 1631, "Alafasy_64kbps": 821, "Ali_Hajjaj_AlSuesy_128kbps": 1680, "Ali_Jaber_64kbps": 696,
    "Ayman_Sowaid_64kbps": 1130, "aziz_alili_128kbps": 1410, "Fares_Abbad_64kbps": 589, "Ghamadi_40kbps": 423,
    "Hani_Rifai_192kbps": 2014, "Hani_Rifai_64kbps": 698, "Hudhaify_128kbps": 1634, "Hudhaify_32kbps": 312,
    "Hudhaify_64kbps": 812, "Husary_128kbps": 2298, "Husary_128kbps_Mujawwad": 3104, "Husary_64kbps": 1167,
    "Husary_Mujawwad_64kbps": 1669, "Ibrahim_Akhdar_32kbps": 460, "Karim_Mansoori_40kbps": 1009,
    "Khaalid_Abdullaah_al-Qahtaanee_192kbps": 2183, "khalefa_al_tunaiji_64kbps": 753, "MaherAlMuaiqly128kbps": 1148,
    "Maher_AlMuaiqly_64kbps": 585, "mahmoud_ali_al_banna_32kbps": 363, "Menshawi_16kbps": 190,
    "Minshawy_Mujawwad_192kbps": 4134, "Minshawy_Mujawwad_64kbps": 1624, "Minshawy_Murattal_128kbps": 1571,
    "Mohammad_al_Tablaway_128kbps": 1623, "Mohammad_al_Tablaway_64kbps": 817, "Muhammad_AbdulKareem_128kbps": 1276,
    "Muhammad_Ayyoub_128kbps": 1748, "Muhammad_Ayyoub_64kbps": 886, "Muhammad_Jibreel_128kbps": 1419,
    "Muhammad_Jibreel_64kbps": 719, "Muhsin_Al_Qasim_192kbps": 1674, "Nabil_Rifa3i_48kbps": 717,
    "Nasser_Alqatami_128kbps": 1124, "Parhizgar_48kbps": 570, "Sahl_Yassin_128kbps": 1343,
    "Salaah_AbdulRahman_Bukhatir_128kbps": 1317, "Salah_Al_Budair_128kbps": 1238, "Saood_ash-Shuraym_128kbps": 1001,
    "Saood_ash-Shuraym_64kbps": 506, "Yaser_Salamah_128kbps": 1472, "Yasser_Ad-Dussary_128kbps": 1428,
}
# fmt: on


def ayat_of(surahs: Iterable[int]) -> list[Key]:
    """Return every (surah, ayah) of ``surahs``, in the order of the mushaf."""
    return [(surah, ayah) for surah in surahs for ayah in range(1, AYAT_PER_SURAH[surah - 1] + 1)]


def listed(ayat: Iterable[Key]) -> str:
    """Format ``ayat`` as ``1:7, 2:61``; of those beyond 20 only the number."""
    names = [f"{surah}:{ayah}" for surah, ayah in sorted(ayat)]
    return ", ".join(names[:20]) + (f", and {len(names) - 20:,} more" if len(names) > 20 else "")


def fetch_text(session: requests.Session, url: str, folder: Path) -> Path:
    """Write ``ayah_text_clear.csv`` and Tanzil's licence to ``folder``, unless the text exists; return its path."""
    path = make_folder(folder) / "ayah_text_clear.csv"
    if path.is_file():
        return path
    try:
        texts, licence = fetch(session, url, lambda response: parse_tanzil(response.content))
    except FetchError as error:
        raise UserError(f"cannot fetch {url} ({error}): {CHECK_CONNECTION}") from error
    with atomic_write(folder / "LICENSE-tanzil.txt") as file:
        file.write(
            f"{licence}\n\nChanged in {path.name}: the basmala that Tanzil writes before the first ayah of a surah is\n"
            "left out, as the recordings leave it out.\n"
        )
    with atomic_write(path) as file:
        csv.writer(file, lineterminator="\n").writerows([("sorah", "ayah", "text"), *texts])
    return path


def parse_tanzil(body: bytes) -> tuple[list[tuple[int, int, str]], str]:
    """Return the rows (surah, ayah, text) and the licence, from lines ``surah|ayah|text`` and a footer of ``#`` lines.

    Raises:
        FetchError: it is not the whole text, but an error page, a part or another edition.
    """
    lines = body.decode("utf-8-sig", errors="replace").replace("\r", "").split("\n")
    licence = [line for line in lines if line.startswith("#")]
    rows = [line.split("|") for line in lines if line.strip() and not line.startswith("#")]
    keys = ayat_of(ALL)
    if [row[:2] for row in rows] != [[str(surah), str(ayah)] for surah, ayah in keys] or not licence:
        raise FetchError("what comes is not Tanzil's text: 6,236 lines surah|ayah|text and a licence were expected")
    texts = []
    for (surah, ayah), row in zip(keys, rows, strict=True):
        text = " ".join("|".join(row[2:]).split())
        if ayah == 1:
            text = without_basmala(text)  # 1:1 is no more than that, so it stays
        if not text or count_diacritics(text) or recited(text) != text:
            raise FetchError(f"the text of {surah}:{ayah} is empty or has diacritics: not Tanzil's simple-clean text")
        texts.append((surah, ayah, text))
    return texts, "\n".join(licence)
