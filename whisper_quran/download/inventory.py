"""``--check``: list the contents of a folder of recitations, reciter by reciter, and compare them with the text.

Durations are read from the files' headers, so that a reciter takes seconds. If a header cannot be read, the file is
decoded as in training, and counts as unreadable if that fails. Other damage is only found when training decodes it.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from ..data.audio import SAMPLE_RATE, AudioError, decode_file, header_seconds
from ..data.corpus import AUDIO_EXTENSIONS, find_reciters, parse_surahs, read_text
from ..runtime.console import printable, progress_bar
from ..runtime.errors import UserError
from .reciters import ALL, Key, ayat_of, spans

LONG = 30.0  # seconds: Whisper's window, and the longest ayah that training takes


@dataclass
class Inventory:
    """One reciter's files. ``long`` and ``seconds`` count readable files; ``unreadable`` has the others' errors."""

    files: defaultdict[Key, list[Path]] = field(default_factory=lambda: defaultdict(list))
    missing: list[Key] = field(default_factory=list)
    double: list[Key] = field(default_factory=list)
    identical: list[list[Key]] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    no_ayah: list[str] = field(default_factory=list)
    long: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> Counter[str]:
        problems = {"missing": len(self.missing), "double": len(self.double), "unreadable": len(self.unreadable)}
        return Counter(problems | {"identical": sum(map(len, self.identical))})

    def __str__(self) -> str:
        lines = []
        if self.missing:
            lines.append(f"missing: {spans(self.missing)}")
        if self.double:
            lines.append(f"double: {spans(self.double)}")
        lines += [f"identical: {spans(ayat)} (the same recording)" for ayat in self.identical]
        lines += [f"unreadable: {printable(file.name)} ({printable(why)})" for file, why in self.unreadable.items()]
        if self.no_ayah:
            lines.append(f"no ayah, left out: {', '.join(map(printable, self.no_ayah))}")
        return "\n".join(f"  {line}" for line in lines)


def take_inventory(folder: Path, texts: dict[Key, str], bar: tqdm) -> Inventory:
    """Examine all_ayat audio file of ``folder`` that is named after one of the ayat of ``texts``."""
    found = Inventory()
    all_ayat = set(ayat_of(ALL))
    for file in sorted(folder.iterdir()):
        name = file.stem
        if file.suffix.lower() not in AUDIO_EXTENSIONS or file.name.startswith((".", "000")) or name[3:] == "000":
            continue
        key = (int(name[:3]), int(name[3:])) if re.fullmatch("[0-9]{6}", name) else None
        if key in texts:
            found.files[key].append(file)
        elif key not in all_ayat:
            found.no_ayah.append(file.name)
    readable = []
    for key, file in ((key, file) for key, files in found.files.items() for file in files):
        bar.update()
        seconds = header_seconds(file)
        if seconds is None:
            try:
                seconds = len(decode_file(file).samples) / SAMPLE_RATE
            except AudioError as error:
                found.unreadable[file] = str(error)
                continue
        readable.append((key, file))
        found.long += seconds > LONG
        found.seconds += seconds
    found.missing = [key for key in texts if key not in found.files]
    found.double = [key for key, files in found.files.items() if len(files) > 1]
    found.identical = _identical(readable, texts)
    return found


def _identical(files: list[tuple[Key, Path]], texts: dict[Key, str]) -> list[list[Key]]:
    """Return groups of ayat whose files have the same bytes although their texts differ."""
    groups = [files]
    # Files of the same size are common, so their middle is compared before whole files are read.
    for fingerprint in (lambda file: file.stat().st_size, _middle, lambda file: sha256(file.read_bytes()).digest()):
        finer: defaultdict[tuple[int, object], list[tuple[Key, Path]]] = defaultdict(list)
        for number, group in enumerate(groups):
            for key, file in group:
                finer[number, fingerprint(file)].append((key, file))
        groups = [group for group in finer.values() if len({texts[key] for key, _ in group}) > 1]
    return [sorted({key for key, _ in group}) for group in groups]


def _middle(file: Path) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(file.stat().st_size // 2)
        return opened.read(4096)


def check_folder(data: Path, surahs: str | None) -> None:
    """Print the recordings of ``surahs`` in ``data``, reciter by reciter, compared with the text.

    Raises:
        UserError: ``data`` has no recitations or no text, or ayat are missing, double, identical or unreadable.
    """
    chosen = parse_surahs(surahs)
    keys = ayat_of(chosen)
    try:
        reciters = find_reciters(data) if data.is_dir() else {}
        if not reciters:
            raise UserError(f"no recitations in {data}: expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3")
        read, _ = read_text(data / "metadata" / "ayah_text_clear.csv")
        texts = {key: read.get(key, "") for key in keys}
        with progress_bar(len(keys) * len(reciters), " files", "checking") as bar:
            inventories = {printable(name): take_inventory(folder, texts, bar) for name, folder in reciters.items()}
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error

    _print_table(inventories, texts)
    for name, found in inventories.items():
        if details := str(found):
            print(f"\n{name}\n{details}")
    without_text = [key for key in keys if not texts[key]]
    lacking = f"; missing: {spans(without_text)}" if without_text else ""
    print(f"text: {len(keys) - len(without_text):,} of {len(keys):,} ayat{lacking}")
    problems = sum((found.problems for found in inventories.values()), Counter({"without text": len(without_text)}))
    if +problems:
        listed = ", ".join(f"{count:,} {what}" for what, count in (+problems).items())
        raise UserError(
            f"{data} is not whole: {listed} (listed above); downloading into it again fetches what is missing"
        )


def _print_table(inventories: dict[str, Inventory], texts: dict[Key, str]) -> None:
    in_text = Counter(surah for (surah, _), text in texts.items() if text)
    rows = [["reciter", "ayat", "missing", "double", "unreadable", "over 30 s", "hours", "surahs as in the text"]]
    for name, found in inventories.items():
        present = Counter(surah for surah, _ in found.files)
        chosen = {surah for surah, _ in texts}
        fitting = sum(present[surah] == in_text[surah] for surah in chosen)
        counts = [found.files, found.missing, found.double, found.unreadable]
        cells = [f"{len(count):,}" for count in counts] + [f"{found.long:,}", f"{found.seconds / 3600:.2f}"]
        rows.append([name, *cells, f"{fitting} of {len(chosen)}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        print("  ".join([f"{name:{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))]))
