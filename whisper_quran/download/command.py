"""Get the recitations: EveryAyah's MP3s and Tanzil's text, in the layout that training reads.

    python -m whisper_quran.download                                     # Experiment 2A's eight reciters (12 GB)
    python -m whisper_quran.download --reciters Ghamadi_40kbps --surahs 78:114
    python -m whisper_quran.download --check data                        # is everything there, and readable?

Run the same command again after any interruption: only what is missing is fetched, since a file is written under a
hidden name and renamed when it is whole. Each file is compared with EveryAyah's 000_checksum.md5.

An ayah that EveryAyah lacks, or whose file twice does not match its checksum (one ayah of Experiment 2A's reciters), is
left out and listed, and no error: trying again would not help. Anything else that is missing at the end is exit code 2.

The addresses are as those sites publish them; no other host is contacted.
"""

import hashlib
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from ..data.corpus import EXPERIMENT_2A_TRAIN, EXPERIMENT_2A_VALID, parse_surahs
from ..runtime.command_line import check, option, parse
from ..runtime.console import format_size, progress_bar
from ..runtime.errors import UserError
from ..runtime.files import atomic_write, make_folder, storage_error
from .http import LIMITS, Client, FetchError, Limits, NotFound, cannot_fetch, split_url
from .reciters import ALL, KNOWN_RECITERS, Key, ayat_of, require_known, spans
from .tanzil import TANZIL, fetch_text

SITES = {"everyayah": "https://everyayah.com/data", "tanzil": TANZIL}
CONNECTIONS = 6

# The start of an MPEG layer III frame. Text in UTF-8, such as a web page, never holds the byte 0xFF.
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


class ChecksumMismatch(FetchError):
    """The same bytes came twice, and they do not match EveryAyah's checksum list."""


@dataclass(frozen=True)
class DownloadConfig:
    """The options of the download command."""

    reciters: tuple[str, ...] = option(
        EXPERIMENT_2A_TRAIN + EXPERIMENT_2A_VALID, "reciters to fetch (default: Experiment 2A's eight)", metavar="R"
    )
    list: bool = option(False, "show the known reciters and their sizes, and stop")
    surahs: str | None = option(None, "only surahs A to B, inclusive", metavar="A:B")
    out: Path = option(Path("data"), "folder to fill: audio/<Reciter>/SSSAAA.mp3 and metadata/")
    mirror: tuple[str, ...] = option(
        (),
        "addresses to use for the default ones: everyayah=URL (files at URL/<Reciter>/SSSAAA.mp3; any reciter may "
        "then be named) and tanzil=URL (of the text itself)",
        metavar="SITE=URL",
    )
    check: Path | None = option(None, "fetch nothing; check the folder DATA and show what it holds", metavar="DATA")

    def __post_init__(self) -> None:
        check(self)


@dataclass
class Outcome:
    """The result for one reciter: counts, and the reasons for ayat ``left_out`` (by the source) or ``failed``."""

    wanted: int
    present: int
    left_out: dict[Key, str] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.present:,} of {self.wanted:,} ayat"]
        for heading, ayat in (("left out", self.left_out), ("failed", self.failed)):
            for reason in dict.fromkeys(ayat.values()):
                lines.append(f"  {heading}: {spans(key for key in ayat if ayat[key] == reason)} ({reason})")
        return "\n".join(lines)


def download(config: DownloadConfig, limits: Limits = LIMITS) -> None:
    """Fetch the files that ``config`` selects and that are missing; print the result for each reciter.

    Raises:
        UserError: an unknown reciter, no connection, a full disk, a folder that cannot be written, or ayat that could
            not be fetched.
    """
    sites = _sites(config.mirror)
    reciters = _reciters(config.reciters, any_name=sites["everyayah"] != SITES["everyayah"])
    keys = ayat_of(parse_surahs(config.surahs))
    folders = {name: make_folder(config.out / "audio" / name) for name in reciters}
    missing = {name: len(_missing(folder, keys)) for name, folder in folders.items()}
    total, wanted = sum(missing.values()), len(keys) * len(reciters)
    size = sum(KNOWN_RECITERS.get(name, 0) * count / len(ayat_of(ALL)) for name, count in missing.items()) * 2**20
    about = f", about {format_size(size)}" if size else ""
    print(f"{total:,} of {wanted:,} files to fetch{about}: surahs {config.surahs or 'all'}, {' '.join(reciters)}")
    failed = 0
    try:
        with progress_bar(total, " files", "") as bar:
            client = Client(limits, CONNECTIONS, log=lambda line: bar.write(line, file=sys.stderr))
            fetch_text(client, sites["tanzil"], config.out / "metadata")
            bar.write(f"text: {config.out / 'metadata' / 'ayah_text_clear.csv'}, with its licence")
            for name, folder in folders.items():
                bar.set_description(name)
                outcome = _fetch_reciter(client, f"{sites['everyayah'].rstrip('/')}/{quote(name)}", folder, keys, bar)
                bar.write(f"{name}: {outcome}")
                failed += len(outcome.failed)
    except KeyboardInterrupt:
        present = sum(len(keys) - len(_missing(folder, keys)) for folder in folders.values())
        line = f"interrupted: {present:,} of {wanted:,} files are there; the same command goes on from there"
        print(line, file=sys.stderr)
        raise
    if failed:
        raise UserError(f"{failed:,} files could not be fetched (listed above): run the same command again")


def _reciters(names: Iterable[str], any_name: bool) -> list[str]:
    """Return ``names`` without repetition; they must be known or, with ``any_name``, valid names of folders."""
    reciters = list(dict.fromkeys(names))
    if separator := re.search("[,;]", " ".join(reciters)):
        raise UserError(
            f"--reciters has {separator[0]!r} between names: separate names by spaces, as in --reciters A B"
        )
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
    try:
        present = {file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size}
    except OSError as error:
        raise storage_error(error, folder) from error
    return [key for key in keys if file_name(key) not in present]


def file_name(key: Key) -> str:
    """Return EveryAyah's file name of an ayah: ``SSSAAA.mp3``."""
    return f"{key[0]:03}{key[1]:03}.mp3"


def _fetch_reciter(client: Client, address: str, folder: Path, keys: Sequence[Key], bar: tqdm) -> Outcome:
    """Fetch the ayat of one reciter that are not in ``folder`` yet."""
    _remove_leftovers(folder)
    missing = _missing(folder, keys)
    digests = _fetch_digests(client, address) if missing else {}
    outcome = Outcome(len(keys), len(keys) - len(missing))

    def fetch(key: Key) -> tuple[Key, int | Exception]:
        name = file_name(key)
        try:
            body = client.fetch(f"{address}/{name}", _mp3_parser(digests.get(name, set())))
            with atomic_write(folder / name, "wb") as file:
                file.write(body)
        except Exception as error:
            return key, error
        return key, len(body)

    received, failed_in_a_row, started = 0, 0, time.monotonic()
    with ThreadPool(CONNECTIONS) as pool:  # daemon threads: one that waits for a server does not delay a Ctrl-C
        for key, result in pool.imap_unordered(fetch, missing):
            if isinstance(result, NotFound | ChecksumMismatch):
                outcome.left_out[key] = str(result)
            elif isinstance(result, FetchError):
                outcome.failed[key] = str(result)
                failed_in_a_row += 1
            elif isinstance(result, Exception):
                raise result
            else:
                outcome.present += 1
                failed_in_a_row = 0
                received += result
                rate = received / (time.monotonic() - started)
                bar.set_postfix_str(f"{format_size(received)}, {format_size(rate)}/s", refresh=False)
            bar.update()
            if failed_in_a_row == 10:
                raise UserError(
                    f"10 files in a row failed, the last of them {address}/{file_name(key)} ({result}): check the "
                    "connection; the same command goes on from there"
                )
            if not outcome.present and len(outcome.left_out) == min(50, len(missing)):
                raise UserError(
                    f"{address} has none of the first {len(outcome.left_out)} ayat asked for ({result}): check the "
                    "reciter and --mirror, or ask for the --surahs that are there"
                )
    return outcome


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of earlier processes, unless they are so recent that a process may still write them."""
    for leftover in folder.iterdir():
        if re.fullmatch(r"\.[0-9]{6}\.mp3\.[0-9a-f]{8}\.tmp", leftover.name) and leftover.is_file():
            with suppress(FileNotFoundError):  # another process removed it
                if time.time() - leftover.stat().st_mtime > 3600:
                    leftover.unlink()


def _fetch_digests(client: Client, address: str) -> dict[str, set[str]]:
    """Return the MD5 digests that EveryAyah lists for each file of a reciter; empty if it has no list.

    A line is a digest, a space, ``*`` and a path, whose folders vary from reciter to reciter.
    """

    def read(body: bytes) -> dict[str, set[str]]:
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for line in body.decode("ascii", errors="replace").lower().splitlines():
            digest, name = line[:32], re.split(r"[\s*/\\]", line[32:].rstrip()[-11:])[-1]
            if re.fullmatch("[0-9a-f]{32}", digest):
                digests[name].add(digest)
        return dict(digests)

    url = f"{address}/000_checksum.md5"
    try:
        return client.fetch(url, read)
    except NotFound:
        return {}
    except FetchError as error:
        raise cannot_fetch(url, error) from error


def _mp3_parser(digests: set[str]) -> Callable[[bytes], bytes]:
    """Return a parser that checks that a body is an MP3 and, if there are ``digests``, that it matches one of them."""
    last = ""

    def parse_mp3(body: bytes) -> bytes:
        nonlocal last
        if not _MP3_FRAME.search(body):
            raise FetchError("what comes is no MP3")
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if digests and digest not in digests:
            if digest == last:
                raise ChecksumMismatch("not the file that 000_checksum.md5 lists", retry=False)
            last = digest
            raise FetchError("damaged on the way: not the file that 000_checksum.md5 lists")
        return body

    return parse_mp3


def main(argv: Sequence[str] | None = None, limits: Limits = LIMITS) -> None:
    """Run the command line; ``argv`` is ``sys.argv``'s by default."""
    config = parse(DownloadConfig, __doc__, argv, prog=f"python -m {__package__}")
    if config.list:
        for name, mebibytes in KNOWN_RECITERS.items():
            part = "training" if name in EXPERIMENT_2A_TRAIN else "validation" if name in EXPERIMENT_2A_VALID else ""
            print(f"{name:47} {format_size(mebibytes << 20):>10}  {part and 'Experiment 2A: ' + part}".rstrip())
    elif config.check:
        from .inventory import check_folder  # imports NumPy, which would double the time to start

        check_folder(config.check, config.surahs)
    else:
        download(config, limits)
