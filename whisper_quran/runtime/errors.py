"""The errors that are not bugs, and the one place where they become exit codes."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user must change.

    The message is one line that says what is wrong, where, and how to mend it. Anything else that is raised is a
    bug and keeps its traceback. ``already_reported`` is True if another process of the run prints it.
    """

    already_reported = False


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, by its signal number. Like KeyboardInterrupt it passes through ``except Exception``."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by signal {number}")
        self.signal = number


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command line and exit: 0 done, 2 for a :class:`UserError` (one line on stderr), 130 or 143 interrupted."""
    try:
        main()
    except UserError as error:
        if not error.already_reported:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would change the exit code
        sys.exit(130)
    except Interrupted as error:
        signal.signal(error.signal, signal.SIG_IGN)
        sys.exit(128 + error.signal)
    sys.exit(0)
