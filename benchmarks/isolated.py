"""Run a measurement in a process of its own: what it breaks, takes or leaves behind stays there, and it has a limit."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Report = Callable[[Any], None]


@dataclass
class Outcome:
    """What a measurement reported before it ended, and how that was: ``error`` is a line, None if all went well."""

    rows: list[Any] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0


def run_isolated(work: Callable[[Report], None], limit: float) -> Outcome:
    """Call ``work`` with a function that takes its rows (anything that can be pickled), for at most ``limit`` seconds.

    The process is forked, so that nothing has to be imported again. That is safe as long as this process itself does
    not compute with torch, on a GPU or a CPU. What ``work`` prints goes to stderr.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, writer))
    outcome, start = Outcome(), time.monotonic()
    sys.stdout.flush()
    process.start()
    writer.close()
    try:
        outcome.error = _receive(reader, process, start + limit, outcome.rows)
    finally:
        with suppress(ProcessLookupError):  # whatever it started, too
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    outcome.seconds = time.monotonic() - start
    return outcome


def _receive(reader: Connection, process: Any, deadline: float, rows: list[Any]) -> str | None:
    """Collect rows until ``process`` is done; return how it failed, if it did."""
    while (left := deadline - time.monotonic()) > 0:
        if reader.poll(min(left, 0.2)):
            try:
                kind, value = reader.recv()
            except EOFError:
                process.join(5)
                return f"died, exit code {process.exitcode}"
            if kind == "end":
                return value
            rows.append(value)
        elif not process.is_alive() and not reader.poll():
            return f"died, exit code {process.exitcode}"
    return "out of time"


def _child(work: Callable[[Report], None], writer: Connection) -> None:
    os.setsid()
    os.dup2(2, 1)
    error = None
    try:
        work(lambda row: writer.send(("row", row)))
    except BaseException as raised:
        traceback.print_exc()
        lines = str(raised).strip().splitlines() or [""]
        # CUDA's messages begin, and a loader process's traceback ends, with what matters.
        error = f"{type(raised).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))[:300]}"
    writer.send(("end", error))
