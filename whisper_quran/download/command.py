"""Get the recitations: EveryAyah's MP3s and Tanzil's text, in the layout that training reads.

    python -m whisper_quran.download                                     # Experiment 2A's eight reciters (12 GB)
    python -m whisper_quran.download --reciters Ghamadi_40kbps --surahs 78:114
    python -m whisper_quran.download --check data                        # is everything there, and readable?

Run the same command again after any interruption: a file is written under a hidden name and renamed when it is whole,
so what stands under an ayah's name is whole, and only what is missing is fetched.

File by file is the default: EveryAyah mends single files and not its archives, each file can be held against
``000_checksum.md5``, an interruption costs one file, and over connections kept open 6,236 files come no slower than
their bytes. ``--zip`` takes the archive of a reciter of whom nothing is there yet (one request, resumed where it was
cut, and for a while twice the space), then fetches file by file what the archive lacked.

What EveryAyah lacks, or disowns (the same bytes come twice and are not those of its checksum list, which is so for an
ayah of Experiment 2A's eight reciters), is left out, listed, and no error: trying again would not help. Anything else
that is missing at the end is exit code 2.

The addresses are as those sites publish them. Redirects to other hosts are refused, and no other address is contacted.
"""

import queue
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from tqdm import tqdm

from .. import __version__
from ..data.corpus import EXPERIMENT_2A_TRAIN, EXPERIMENT_2A_VALID, parse_surahs
from ..runtime.command_line import option, parse
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder
from .archive import LARGEST_FILE, Disowned, file_name, mp3_check, unpack
from .inventory import check
from .polite import PATIENCE, Absent, Client, Failed, Patience, cannot_fetch, split_url
from .reciters import ALL, KNOWN_RECITERS, Key, ayat_of, require_known, spans
from .tanzil import TANZIL, fetch_text

SITES = {
    "everyayah": "https://everyayah.com/data",
    "tanzil": TANZIL,
}
USER_AGENT = f"whisper-quran/{__version__}"
CONNECTIONS = 6

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class DownloadConfig:
    """What to fetch, from where, to where."""

    reciters: tuple[str, ...] = option(
        EXPERIMENT_2A_TRAIN + EXPERIMENT_2A_VALID, "reciters to fetch (default: Experiment 2A's eight)", metavar="R"
    )
    list: bool = option(False, "show the known reciters and their sizes, and stop")
    surahs: str | None = option(None, "only surahs A to B, inclusive", metavar="A:B")
    out: Path = option(Path("data"), "folder to fill: audio/<Reciter>/SSSAAA.mp3 and metadata/")
    zip: bool = option(False, "fetch the archive of a reciter of whom nothing is there yet, in place of single files")
    mirror: tuple[str, ...] = option(
        (),
        "addresses to use for the default ones: everyayah=URL (files at URL/<Reciter>/SSSAAA.mp3; any reciter may "
        "then be named) and tanzil=URL (of the text itself)",
        metavar="SITE=URL",
    )
    check: Path | None = option(None, "fetch nothing; check the folder DATA and show what it holds", metavar="DATA")


@dataclass
class Outcome:
    """What became of one reciter: ``left_out`` by the source and ``failed`` ayat, each with the reason."""

    wanted: int
    there: int = 0
    left_out: dict[Key, str] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)


def download(config: DownloadConfig, patience: Patience = PATIENCE) -> None:
    """Fetch what ``config`` asks for and is not there yet; print what became of each reciter.

    Raises:
        UserError: an unknown reciter, no connection, a full disk, a folder that cannot be written, or ayat that could
            not be fetched.
    """
    sites = _sites(config.mirror)
    reciters = _reciters(config.reciters, any_name=sites["everyayah"] != SITES["everyayah"])
    keys = ayat_of(parse_surahs(config.surahs))
    folders = {name: make_folder(config.out / "audio" / name) for name in reciters}
    missing = {name: len(_missing(folder, keys)) for name, folder in folders.items()}
    total = sum(missing.values())
    size = sum(KNOWN_RECITERS.get(name, 0) * count / len(ayat_of(ALL)) for name, count in missing.items()) * 2**20
    print(
        f"{total:,} of {len(keys) * len(reciters):,} files to fetch{f', about {_size(size)}' * (size > 0)}: "
        f"surahs {config.surahs or 'all'}, {' '.join(reciters)}"
    )
    failed = 0
    with tqdm(total=total, unit=" files", leave=False, disable=None, dynamic_ncols=True) as bar:
        client = Client(USER_AGENT, patience, tell=lambda line: bar.write(line, file=sys.stderr))
        try:
            fetch_text(client, sites["tanzil"], config.out / "metadata")
            bar.write(f"text: {config.out / 'metadata' / 'ayah_text_clear.csv'}, with its licence")
            for name, folder in folders.items():
                bar.set_description(name)
                address = f"{sites['everyayah'].rstrip('/')}/{quote(name)}"
                outcome = _fetch_reciter(client, address, folder, keys, config.zip, bar)
                bar.write(_summary(name, outcome))
                failed += len(outcome.failed)
        except KeyboardInterrupt:
            there = sum(len(keys) - len(_missing(folder, keys)) for folder in folders.values())
            line = f"interrupted: {there:,} of {len(keys) * len(reciters):,} files are there"
            bar.write(f"{line}; the same command goes on from there", file=sys.stderr)
            raise
        finally:
            client.stop()
    if failed:
        raise UserError(f"{failed:,} files could not be fetched (listed above): run the same command again")


def _reciters(names: Iterable[str], any_name: bool) -> list[str]:
    """``names`` without repetition, once they are known or, with ``any_name``, fit to name a folder."""
    reciters = list(dict.fromkeys(names))
    if not reciters:
        raise UserError("--reciters names nobody: --list shows the known reciters")
    if not any_name:
        require_known(reciters)
    for name in reciters:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise UserError(f"--reciters {name!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
    return reciters


def _sites(mirrors: Iterable[str]) -> dict[str, str]:
    sites = dict(SITES)
    for mirror in mirrors:
        site, _, address = mirror.partition("=")
        try:
            split_url(address)
        except ValueError:
            site = ""
        if site not in sites:
            raise UserError(f"--mirror {mirror}: give everyayah=URL or tanzil=URL, with an http or https URL")
        sites[site] = address
    return sites


def _missing(folder: Path, keys: Iterable[Key]) -> list[Key]:
    there = {file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size}
    return [key for key in keys if file_name(key) not in there]


# --- EveryAyah


def _fetch_reciter(client: Client, address: str, folder: Path, keys: list[Key], zip: bool, bar: tqdm) -> Outcome:
    """Fetch the ayat of one reciter that are not in ``folder`` yet."""
    part = folder / "000_versebyverse.zip.part"
    _sweep(folder, part if not zip else None)
    missing = _missing(folder, keys)
    digests = _fetch_digests(client, address) if missing else {}
    # Where single files are there already, an archive would fetch them a second time.
    if zip and missing and (part.exists() or not any(folder.glob("[0-9]*.mp3"))):
        _fetch_archive(client, f"{address}/000_versebyverse.zip", part, missing, digests, bar)
        missing = _missing(folder, keys)
    outcome = Outcome(len(keys), len(keys) - len(missing))

    def fetch(key: Key) -> int:
        name = file_name(key)
        body = client.fetch(f"{address}/{name}", mp3_check(digests.get(name, set())), LARGEST_FILE)
        with atomic_write(folder / name, "wb") as file:
            file.write(body)
        return len(body)

    received, failed_in_a_row, started = 0, 0, time.monotonic()
    with closing(_in_parallel(fetch, missing, client)) as results:
        for key, result in results:
            if isinstance(result, Absent | Disowned):
                outcome.left_out[key] = str(result)
            elif isinstance(result, Failed):
                outcome.failed[key] = str(result)
                failed_in_a_row += 1
            elif isinstance(result, Exception):
                raise result
            else:
                outcome.there += 1
                failed_in_a_row = 0
                received += result
                rate = received / (time.monotonic() - started)
                bar.set_postfix_str(f"{_size(received)}, {_size(rate)}/s", refresh=False)
            bar.update()
            if failed_in_a_row == 10:
                raise UserError(
                    f"10 files in a row failed, the last of them {address}/{file_name(key)} ({result}): check the "
                    "connection; the same command goes on from there"
                )
            if not outcome.there and len(outcome.left_out) == min(50, len(missing)):
                raise UserError(
                    f"{address} has none of the first {len(outcome.left_out)} ayat asked for ({result}): check the "
                    "reciter and --mirror, or ask for the --surahs that are there"
                )
    return outcome


def _sweep(folder: Path, part: Path | None) -> None:
    """Remove what an earlier process left unfinished, unless it may still be another one's work in progress."""
    if part is not None:
        part.unlink(missing_ok=True)
    for leftover in folder.glob(".*.mp3.*.tmp"):
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)


def _in_parallel(
    work: Callable[[J], R], jobs: Sequence[J], client: Client
) -> Generator[tuple[J, R | Exception], None, None]:
    """Yield (job, what ``work`` returned or raised), as they are done; closing it ends the work.

    The threads are daemons, so that one that is stuck (in a name look-up, say) cannot hold up a Ctrl-C.
    """
    todo: queue.SimpleQueue[J] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[J, R | Exception]] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)

    def loop() -> None:
        while not todo.empty():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((job, work(job)))
            except Exception as error:
                done.put((job, error))

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(CONNECTIONS, len(jobs)))]
    for thread in threads:
        thread.start()
    left = len(jobs)
    try:
        while left:
            yield done.get()
            left -= 1
    finally:
        if left:
            client.stop()
        deadline = time.monotonic() + 2
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))


def _fetch_digests(client: Client, address: str) -> dict[str, set[str]]:
    """The MD5 digests that EveryAyah lists for each file of a reciter; empty where it has no list.

    ``000_checksum.md5`` holds lines of a digest, a space, ``*`` and a path whose folders vary from reciter to reciter.
    """
    line = re.compile(rb"^([0-9a-fA-F]{32})[ \t]+\*?(?:.*[/\\])?(\d{6}\.mp3)\s*$", re.MULTILINE)

    def read(body: bytes) -> dict[str, set[str]]:
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for digest, name in line.findall(body):
            digests[name.decode()].add(digest.decode().lower())
        return dict(digests)

    url = f"{address}/000_checksum.md5"
    try:
        return client.fetch(url, read, limit=8 << 20)
    except Absent:
        return {}
    except Failed as failure:
        raise cannot_fetch(url, failure) from failure


def _fetch_archive(
    client: Client, url: str, part: Path, missing: list[Key], digests: dict[str, set[str]], bar: tqdm
) -> None:
    """Fetch the archive at ``url`` to ``part``, unpack it beside that, and remove it."""
    with tqdm(unit="B", unit_scale=True, desc=part.stem, leave=False, disable=None, dynamic_ncols=True) as bytes_bar:

        def progress(size: int, total: int | None) -> None:
            bytes_bar.total = total
            bytes_bar.update(size - bytes_bar.n)

        try:
            client.save(url, part, progress)
        except Absent:
            client.tell(f"{url} is not there: fetching file by file")
            return
        except Failed as failure:
            raise cannot_fetch(url, failure) from failure
    refused = unpack(part, part.parent, missing, digests, bar.update)
    for line in refused[:20] + [f"... and {len(refused) - 20:,} more"] * (len(refused) > 20):
        client.tell(f"{url}: refused {line}")
    part.unlink()


# --- The command


def _summary(name: str, outcome: Outcome) -> str:
    lines = [f"{name}: {outcome.there:,} of {outcome.wanted:,} ayat"]
    for word, ayat in (("left out", outcome.left_out), ("failed", outcome.failed)):
        for reason in dict.fromkeys(ayat.values()):
            lines.append(f"  {word}: {spans(key for key in ayat if ayat[key] == reason)} ({reason})")
    return "\n".join(lines)


def _size(bytes: float) -> str:
    return f"{bytes / 1e6:,.1f} MB" if bytes < 1e9 else f"{bytes / 1e9:,.2f} GB"


def main(argv: Sequence[str] | None = None, patience: Patience = PATIENCE) -> None:
    """The command line; ``argv`` is ``sys.argv``'s by default."""
    config = parse(DownloadConfig, __doc__, argv, prog=f"python -m {__package__}")
    if config.list:
        for name, mebibytes in KNOWN_RECITERS.items():
            part = "training" if name in EXPERIMENT_2A_TRAIN else "validation" if name in EXPERIMENT_2A_VALID else ""
            print(f"{name:47} {_size(mebibytes << 20):>10}  {part and 'Experiment 2A: ' + part}".rstrip())
    elif config.check:
        check(config.check, config.surahs)
    else:
        download(config, patience)
