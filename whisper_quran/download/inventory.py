"""``--check``: list the recordings in a folder, reciter by reciter, and compare them with the text.

Durations are read from the files' headers, so that a reciter takes seconds. If a header cannot be read, the file is
decoded as in training, and counts as unreadable if that fails. Other damage is only found when training decodes it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from ..data.audio import SAMPLE_RATE, AudioError, decode_file, header_seconds
from ..data.corpus import find_reciters, parse_surahs, read_text
from ..data.tables import AUDIO_EXTENSIONS
from ..runtime.console import markdown_table, printable, progress_bar
from ..runtime.errors import UserError
from .sources import ALL, Key, ayat_of, spans

LONG = 30.0  # seconds: Whisper's window, and the longest ayah that training takes


def check_data(data: Path, surahs: str | None) -> None:
    """Print the recordings of ``surahs`` in ``data``, reciter by reciter, compared with the text.

    Raises:
        UserError: ``data`` has no recitations or no text, or ayat are missing, double, identical or unreadable.
    """
    keys = ayat_of(parse_surahs(surahs))
    reciters = find_reciters(data) if data.is_dir() else {}
    if not reciters:
        raise UserError(f"no recitations in {data}: expected audio/<Reciter>/SSSAAA.mp3 or <Reciter>/SSSAAA.mp3")
    read, _ = read_text(data / "metadata" / "ayah_text_clear.csv")
    texts = {key: read.get(key, "") for key in keys}
    without_text = [key for key in keys if not texts[key]]
    rows, details = [], []
    problems = Counter({"without text": len(without_text)})
    with progress_bar(len(keys) * len(reciters), " files", "checking") as bar:
        for name, folder in reciters.items():
            cells, counts, lines = _check_reciter(folder, texts, bar)
            rows.append([printable(name), *cells])
            problems.update(counts)
            details += [f"\n{printable(name)}", *lines] if lines else []
    print(markdown_table(["reciter", "ayat", "missing", "double", "unreadable", "over 30 s", "hours"], rows), end="")
    print("\n".join(details))
    lacking = f"; missing: {spans(without_text)}" if without_text else ""
    print(f"text: {len(keys) - len(without_text):,} of {len(keys):,} ayat{lacking}")
    if found := ", ".join(f"{count:,} {what}" for what, count in problems.items() if count):
        raise UserError(f"{data} is not whole: {found} (listed above); the download fetches what is missing")


def _check_reciter(folder: Path, texts: Mapping[Key, str], bar: tqdm) -> tuple[list[str], Counter[str], list[str]]:
    """Return the cells of a reciter's row, the number of problems of each kind, and lines that list them."""
    files: dict[Key, list[Path]] = {key: [] for key in texts}
    no_ayah, every_ayah = [], set(ayat_of(ALL))
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in AUDIO_EXTENSIONS or re.match(r"\.|000|[0-9]{3}000\.", file.name):
            continue
        key = (int(file.name[:3]), int(file.name[3:6])) if re.fullmatch("[0-9]{6}", file.stem) else None
        if key in files:
            files[key].append(file)
        elif key not in every_ayah:
            no_ayah.append(printable(file.name))
    unreadable, durations = [], []
    same: defaultdict[tuple[int, bytes], list[Key]] = defaultdict(list)
    for key, file in ((key, file) for key, found in files.items() for file in found):
        bar.update()
        try:
            seconds = header_seconds(file)
            durations.append(len(decode_file(file).samples) / SAMPLE_RATE if seconds is None else seconds)
        except AudioError as error:
            unreadable.append(f"  unreadable: {printable(file.name)} ({printable(str(error))})")
            continue
        size = file.stat().st_size
        with open(file, "rb") as opened:
            opened.seek(max(0, size // 2 - 2**15))
            same[size, opened.read(2**16)].append(key)  # the middle tells recordings apart, and is read fast
    missing = [key for key, found in files.items() if not found]
    double = [key for key, found in files.items() if len(found) > 1]
    identical = [keys for keys in same.values() if len({texts[key] for key in keys}) > 1]
    lines = [f"  {what}: {spans(keys)}" for what, keys in (("missing", missing), ("double", double)) if keys]
    lines += [f"  identical: {spans(set(keys))} (the same recording)" for keys in identical] + unreadable
    lines += [f"  no ayah, left out: {', '.join(no_ayah)}"] if no_ayah else []
    counts = Counter(missing=len(missing), double=len(double), unreadable=len(unreadable))
    counts["identical"] = sum(map(len, identical))
    numbers = [len(files) - len(missing), len(missing), len(double), len(unreadable), sum(s > LONG for s in durations)]
    return [*(f"{number:,}" for number in numbers), f"{sum(durations) / 3600:.2f}"], counts, lines
