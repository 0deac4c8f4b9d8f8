"""The one kind of error a user can cause, and the one place where it becomes an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user must change.

    The message is one line that says what is wrong, where, and how to mend it. Anything else that is raised is a
    bug and keeps its traceback.
    """


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command line and exit: 0 done, 2 for a :class:`UserError` (one line on stderr), 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
