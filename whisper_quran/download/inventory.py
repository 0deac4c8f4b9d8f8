"""``--check``: what a folder of recitations holds, reciter by reciter, and how the text fits it.

Lengths come from the files' headers, so that a reciter takes seconds; a file whose header says nothing is decoded as
training would decode it before it counts as unreadable. Damage further inside a file shows when training decodes it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..data.audio import SAMPLE_RATE, AudioError, decode_file, header_seconds
from ..data.corpus import AUDIO_EXTENSIONS, find_reciters, parse_surahs, read_text
from ..runtime.console import progress_bar
from ..runtime.errors import UserError
from .reciters import ALL, Key, ayat_of, spans

LONG = 30.0  # seconds: what Whisper hears at once, and the longest that training takes


@dataclass
class Inventory:
    """One reciter's folder. ``long`` and ``seconds`` count readable files; ``unreadable`` says why others are not."""

    files: defaultdict[Key, list[Path]] = field(default_factory=lambda: defaultdict(list))
    missing: list[Key] = field(default_factory=list)
    double: list[Key] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    no_ayah: list[str] = field(default_factory=list)
    long: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> dict[str, int]:
        return {"missing": len(self.missing), "double": len(self.double), "unreadable": len(self.unreadable)}

    def __str__(self) -> str:
        lines = [
            f"  {what}: {spans(ayat)}" for what, ayat in (("missing", self.missing), ("double", self.double)) if ayat
        ]
        lines += [f"  unreadable: {file.name} ({reason})" for file, reason in self.unreadable.items()]
        if self.no_ayah:
            lines.append(f"  no ayah, left out: {', '.join(self.no_ayah)}")
        return "\n".join(lines)


def take_inventory(folder: Path, keys: Sequence[Key], bar: tqdm) -> Inventory:
    """Look at every file of ``folder`` that is named for one of the ayat ``keys``."""
    found = Inventory()
    wanted, every = set(keys), set(ayat_of(ALL))
    for file in sorted(folder.iterdir()):
        name = file.stem
        if file.suffix.lower() not in AUDIO_EXTENSIONS or file.name.startswith((".", "000")) or name[3:] == "000":
            continue
        key = (int(name[:3]), int(name[3:])) if len(name) == 6 and name.isdecimal() else None
        if key in wanted:
            found.files[key].append(file)
        elif key not in every:
            found.no_ayah.append(file.name)
    for file in (file for files in found.files.values() for file in files):
        bar.update()
        seconds = header_seconds(file)
        if seconds is None:
            try:
                seconds = len(decode_file(file).samples) / SAMPLE_RATE
            except AudioError as error:
                found.unreadable[file] = str(error)
                continue
        found.long += seconds > LONG
        found.seconds += seconds
    found.missing = [key for key in keys if key not in found.files]
    found.double = [key for key, files in found.files.items() if len(files) > 1]
    return found


def check_folder(data: Path, surahs: str | None) -> None:
    """Print what ``data`` holds of ``surahs``, reciter by reciter, and how the text fits it.

    Raises:
        UserError: there are no recitations or no text in ``data``; or something is missing, double or unreadable.
    """
    chosen = parse_surahs(surahs)
    keys = ayat_of(chosen)
    reciters = find_reciters(data) if data.is_dir() else {}
    if not reciters:
        raise UserError(f"no recitations in {data}: expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3")
    texts, _ = read_text(data / "metadata" / "ayah_text_clear.csv")
    without_text = [key for key in keys if not texts.get(key)]
    with progress_bar(len(keys) * len(reciters), " files", "checking") as bar:
        inventories = {name: take_inventory(folder, keys, bar) for name, folder in reciters.items()}

    in_text = Counter(surah for surah, ayah in keys if texts.get((surah, ayah)))
    rows = [["reciter", "ayat", "missing", "double", "unreadable", "over 30 s", "hours", "surahs as in the text"]]
    problems: Counter[str] = Counter()
    for name, found in inventories.items():
        present = Counter(surah for surah, _ in found.files)
        fitting = sum(present[surah] == in_text[surah] for surah in chosen)
        counts = [len(found.files), *found.problems.values(), found.long]
        rows.append([name, *map("{:,}".format, counts), f"{found.seconds / 3600:.2f}", f"{fitting} of {len(chosen)}"])
        problems += Counter(found.problems)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        print("  ".join([f"{name:{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))]))
    for name, found in inventories.items():
        if details := str(found):
            print(f"\n{name}\n{details}")
    lacking = f"; missing: {spans(without_text)}" if without_text else ""
    print(f"text: {len(keys) - len(without_text):,} of {len(keys):,} ayat{lacking}")
    problems += Counter({"without text": len(without_text)})
    if problems:
        listed = ", ".join(f"{count:,} {what}" for what, count in problems.items())
        raise UserError(
            f"{data} is not whole: {listed} (listed above); downloading into it again fetches what is missing"
        )
