"""Get the recitations: EveryAyah's MP3s and Tanzil's text, in the layout that training reads.

    python -m whisper_quran.download                                     # Experiment 2A's eight reciters (12 GB)
    python -m whisper_quran.download --reciters Ghamadi_40kbps --surahs 78:114

Run the same command again after any interruption: only what is missing is fetched, since a file is written under a
hidden name and renamed when it is whole. Each file is compared with EveryAyah's 000_checksum.md5.

An ayah that EveryAyah lacks, or whose file does not match its checksum (one ayah of Experiment 2A's reciters), is left
out and listed, and no error: trying again would not help. Anything else that is missing at the end is exit code 2.

No host but those two is contacted.
"""

import hashlib
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote

import requests
from tqdm import tqdm

from ..data.corpus import EXPERIMENT_2A_TRAIN, EXPERIMENT_2A_VALID, parse_surahs
from ..runtime.command_line import check, option, parse
from ..runtime.console import format_size, progress_bar
from ..runtime.errors import UserError, did_you_mean, run_command
from ..runtime.files import atomic_write, make_folder
from .http import CHECK_CONNECTION, CONNECTIONS, FetchError, Unavailable, fetch, open_session
from .sources import ALL, EVERYAYAH, KNOWN_RECITERS, TANZIL, Key, ayat_of, fetch_text, listed

# The start of an MPEG layer III frame. Text in UTF-8, such as a web page, never holds the byte 0xFF.
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


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

    def __post_init__(self) -> None:
        check(self)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ``argv`` is ``sys.argv``'s by default."""
    config = parse(DownloadConfig, __doc__, argv, prog="python -m whisper_quran.download")
    if config.list:
        for name, mebibytes in KNOWN_RECITERS.items():
            part = "training" if name in EXPERIMENT_2A_TRAIN else "validation" if name in EXPERIMENT_2A_VALID else ""
            print(f"{name:47} {format_size(mebibytes << 20):>10}  {part and 'Experiment 2A: ' + part}".rstrip())
    else:
        try:
            download(config)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            raise


def download(config: DownloadConfig) -> None:
    """Fetch the files that ``config`` selects and that are missing; print the result for each reciter.

    Raises:
        UserError: an unknown reciter, no connection, or ayat that could not be fetched.
    """
    sites = _sites(config.mirror)
    reciters = _reciters(config.reciters, any_name=sites["everyayah"] != EVERYAYAH)
    keys = ayat_of(parse_surahs(config.surahs))
    folders = {name: make_folder(config.out / "audio" / name) for name in reciters}
    missing = {name: _missing(folder, keys) for name, folder in folders.items()}
    total = sum(map(len, missing.values()))
    size = sum(KNOWN_RECITERS.get(name, 0) * len(ayat) / len(ayat_of(ALL)) for name, ayat in missing.items()) * 2**20
    about = f", about {format_size(size)}" if size else ""
    wanted = len(keys) * len(reciters)
    print(f"{total:,} of {wanted:,} files to fetch{about}: surahs {config.surahs or 'all'}, {' '.join(reciters)}")
    session = open_session()
    text = fetch_text(session, sites["tanzil"], config.out / "metadata")
    print(f"text: {text}, with its licence")
    failed = 0
    with progress_bar(total, " files", "") as bar:
        for name, folder in folders.items():
            bar.set_description(name)
            address = f"{sites['everyayah'].rstrip('/')}/{quote(name)}"
            reasons = _fetch_reciter(session, address, folder, missing[name], bar)
            bar.write(f"{name}: {len(keys) - sum(map(len, reasons.values())):,} of {len(keys):,} ayat")
            for (outcome, reason), ayat in reasons.items():
                bar.write(f"  {outcome}: {listed(ayat)} ({reason})")
                failed += len(ayat) * (outcome == "failed")
    if failed:
        raise UserError(f"{failed:,} files could not be fetched (listed above): run the same command again")
    print(f"next: python train.py --data {shlex.quote(str(config.out))}")
    print("or, with a data set that you have in parquet, JSONL or CSV: python train.py --manifest FILE_OR_FOLDER")


def _sites(mirrors: Iterable[str]) -> dict[str, str]:
    sites = {"everyayah": EVERYAYAH, "tanzil": TANZIL}
    for mirror in mirrors:
        site, _, address = mirror.partition("=")
        if site not in sites or not re.fullmatch("https?://[!-~]+", address):
            raise UserError(f"--mirror {mirror}: give everyayah=URL or tanzil=URL, with an http or https URL")
        sites[site] = address
    return sites


def _reciters(names: Iterable[str], any_name: bool) -> list[str]:
    """Return ``names`` without repetition; they must be known or, with ``any_name``, valid names of folders."""
    reciters = list(dict.fromkeys(names))
    if not reciters:
        raise UserError("--reciters names nobody: --list shows the known reciters")
    for name in reciters:
        if not any_name and name not in KNOWN_RECITERS:
            hint = did_you_mean(name, KNOWN_RECITERS)
            raise UserError(f"no reciter {name} on EveryAyah that this program knows: {hint}--list shows those known")
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise UserError(f"--reciters {name!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
    return reciters


def file_name(key: Key) -> str:
    return f"{key[0]:03}{key[1]:03}.mp3"


def _missing(folder: Path, keys: Iterable[Key]) -> list[Key]:
    present = {file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size}
    return [key for key in keys if file_name(key) not in present]


def _fetch_reciter(
    session: requests.Session, address: str, folder: Path, missing: Sequence[Key], bar: tqdm
) -> dict[tuple[str, str], list[Key]]:
    """Fetch the ayat ``missing`` of a reciter; return those that did not come, by ("left out" or "failed", reason)."""
    digests = _fetch_digests(session, address) if missing else {}

    def fetch_ayah(key: Key) -> tuple[Key, FetchError | None]:
        name = file_name(key)
        try:
            body = fetch(session, f"{address}/{name}", lambda response: _check_mp3(response, digests.get(name, set())))
        except FetchError as error:
            return key, error
        with atomic_write(folder / name, "wb") as file:
            file.write(body)
        return key, None

    reasons: defaultdict[tuple[str, str], list[Key]] = defaultdict(list)
    failed_in_a_row = 0
    with ThreadPool(CONNECTIONS) as pool:  # daemon threads: one that waits for a server does not delay a Ctrl-C
        for key, error in pool.imap_unordered(fetch_ayah, missing):
            bar.update()
            if error:
                reasons["left out" if isinstance(error, Unavailable) else "failed", str(error)].append(key)
            failed_in_a_row = failed_in_a_row + 1 if error and not isinstance(error, Unavailable) else 0
            if failed_in_a_row == 10:
                last = f"{address}/{file_name(key)} ({error})"
                raise UserError(f"10 files in a row failed, the last of them {last}: {CHECK_CONNECTION}")
    return reasons


def _fetch_digests(session: requests.Session, address: str) -> dict[str, set[str]]:
    """Return the MD5 digests that EveryAyah lists for each file of a reciter, in lines such as ``DIGEST *FOLDER/FILE``.

    The folders vary from reciter to reciter, and a file may be listed twice. Empty if there is no list.
    """
    url = f"{address}/000_checksum.md5"
    try:
        text = fetch(session, url, lambda response: response.content.decode("ascii", errors="replace"))
    except Unavailable:
        return {}
    except FetchError as error:
        raise UserError(f"cannot fetch {url} ({error}): {CHECK_CONNECTION}") from error
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for digest, name in re.findall(r"^([0-9a-f]{32}) .*?([^\s*/\\]+)\s*$", text.lower(), re.MULTILINE):
        digests[name].add(digest)
    return digests


def _check_mp3(response: requests.Response, digests: set[str]) -> bytes:
    """Return the body if it is an MP3 that has one of the ``digests``, if there are any."""
    body = response.content
    if not _MP3_FRAME.search(body):
        raise FetchError("what comes is no MP3")
    if digests and hashlib.md5(body, usedforsecurity=False).hexdigest() not in digests:
        raise Unavailable("not the file that 000_checksum.md5 lists")
    if not digests and not {"Content-Length", "Transfer-Encoding"} & response.headers.keys():
        raise FetchError("does not say how long the file is, so a cut could not be told from its end")
    return body


if __name__ == "__main__":
    run_command(main)
