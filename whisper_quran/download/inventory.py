"""What a folder of recitations holds: present, missing, double, unreadable, long; and does the text fit it?

Length and readability come from the files' headers, so that a reciter takes seconds: a file whose header says nothing
is decoded as training would decode it before it counts as unreadable. Damage further inside a file shows when training
decodes it (its ``skipped.csv`` and its report of damaged frames).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.audio import SAMPLE_RATE, AudioError, decode_file, header_seconds
from ..data.corpus import AUDIO_EXTENSIONS, find_reciters, parse_surahs, read_text
from ..runtime.errors import UserError
from .reciters import ALL, Key, ayat_of, spans

LONG = 30.0  # seconds: what Whisper hears at once, and the longest that training takes


@dataclass(frozen=True)
class Holding:
    """One reciter's folder. ``seconds`` and ``long`` count the readable files; ``unreadable`` maps them to why."""

    reciter: str
    present: set[Key]
    missing: list[Key]
    double: list[Key]
    unreadable: dict[Path, str]
    strays: list[str]
    long: int
    seconds: float


def take_inventory(reciter: str, folder: Path, keys: Sequence[Key], bar: tqdm) -> Holding:
    """Look at every file of ``folder`` that is named for one of the ayat ``keys``."""
    files: defaultdict[Key, list[Path]] = defaultdict(list)
    strays = []
    wanted, every = set(keys), set(ayat_of(ALL))
    for file in sorted(folder.iterdir()):
        name = file.stem
        if file.suffix.lower() not in AUDIO_EXTENSIONS or file.name.startswith((".", "000")) or name[3:] == "000":
            continue
        key = (int(name[:3]), int(name[3:])) if len(name) == 6 and name.isdecimal() else None
        if key in wanted:
            files[key].append(file)
        elif key not in every:
            strays.append(file.name)
    unreadable, long, total = {}, 0, 0.0
    for file in (file for group in files.values() for file in group):
        bar.update()
        seconds = header_seconds(file)
        if seconds is None:
            try:
                seconds = len(decode_file(file).samples) / SAMPLE_RATE
            except AudioError as error:
                unreadable[file] = str(error)
                continue
        long += seconds > LONG
        total += seconds
    missing = [key for key in keys if key not in files]
    double = [key for key, group in files.items() if len(group) > 1]
    return Holding(reciter, set(files), missing, double, unreadable, strays, long, total)


def check(data: Path, surahs: str | None) -> None:
    """Print what ``data`` holds of ``surahs``, reciter by reciter, and how the text fits it.

    Raises:
        UserError: there are no recitations or no text in ``data``; or something is missing, double or unreadable.
    """
    chosen = parse_surahs(surahs)
    keys = ayat_of(chosen)
    reciters = find_reciters(data) if data.is_dir() else {}
    if not reciters:
        raise UserError(f"no recitations in {data}: expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3")
    texts = _texts(data, keys)
    with tqdm(unit=" files", desc="checking", leave=False, disable=None, dynamic_ncols=True) as bar:
        holdings = [take_inventory(name, folder, keys, bar) for name, folder in reciters.items()]

    counts = Counter(surah for surah, _ in texts)
    rows = [("reciter", "ayat", "missing", "double", "unreadable", "over 30 s", "hours", "surahs as in the text")]
    problems: Counter[str] = Counter()
    for held in holdings:
        there = Counter(surah for surah, _ in held.present)
        agree = sum(there[surah] == counts[surah] for surah in chosen)
        numbers = [len(held.present), len(held.missing), len(held.double), len(held.unreadable), held.long]
        hours = f"{held.seconds / 3600:.2f}"
        rows.append((held.reciter, *(f"{n:,}" for n in numbers), hours, f"{agree} of {len(chosen)}"))
        problems += Counter(
            {"missing": len(held.missing), "double": len(held.double), "unreadable": len(held.unreadable)}
        )
    _print_table(rows)
    for held in holdings:
        _print_details(held)
    lacking = [key for key in keys if key not in texts]
    print(f"text: {len(texts):,} of {len(keys):,} ayat" + (f"; missing: {spans(lacking)}" if lacking else ""))
    problems += Counter({"without text": len(lacking)})
    if problems:
        found = ", ".join(f"{count:,} {what}" for what, count in problems.items())
        raise UserError(
            f"{data} is not whole: {found} (listed above); downloading into it again fetches what is missing"
        )


def _texts(data: Path, keys: Sequence[Key]) -> dict[Key, str]:
    texts, _ = read_text(data / "metadata" / "ayah_text_clear.csv")
    return {key: texts[key] for key in keys if texts.get(key)}


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        print("  ".join([f"{name:{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))]))


def _print_details(held: Holding) -> None:
    lines = []
    if held.missing:
        lines.append(f"missing: {spans(held.missing)}")
    if held.double:
        lines.append(f"double: {spans(held.double)}")
    lines += [f"unreadable: {file.name} ({reason})" for file, reason in held.unreadable.items()]
    if held.strays:
        lines.append(f"no ayah, left out: {', '.join(held.strays)}")
    if lines:
        print(f"\n{held.reciter}")
        print(*(f"  {line}" for line in lines), sep="\n")
