"""Command lines from dataclasses: the fields define the options, ``config.json`` and the documentation.

``batch_size: int = option(16, "clips a micro-batch")`` is ``--batch-size 16``. :func:`check` checks values given in
Python as strictly as those from the command line.
"""

import argparse
import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from operator import ge, gt, le
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .errors import UserError, did_you_mean

T = TypeVar("T")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Define a dataclass field that is a command-line option.

    Args:
        default: the value if the option is not given; None means "not given". ``dataclasses.MISSING`` makes it a
            positional argument of one or more values.
        help: the line that ``--help`` shows.
        metadata: ``choices``, the values that a string may have; ``above``, ``min`` and ``max``, the bounds of
            a number; ``group``, its heading in ``--help``; ``metavar``; and ``fixed=True`` if it determines a run's
            results, so that it cannot change when the run is resumed.
    """
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a :class:`UserError` (one line) for a wrong command line."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        wrong, _, arguments = message.partition("unrecognized arguments: ")
        if not wrong and arguments.startswith("--"):
            option = arguments.split()[0].partition("=")[0]
            message = f"no option {option}: {did_you_mean(option, self._option_string_actions)}"
        raise UserError(f"{message.rstrip(' :')} (see {self.prog} --help)")


def parse(
    config: type[T],
    doc: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> T:
    """Read a command line (``sys.argv`` by default) into ``config``; ``--help`` shows ``doc``.

    Args:
        presets: defaults that a flag changes: ``{"demo": {"epochs": 5}}``. An option that is given takes precedence.

    Raises:
        UserError: an unknown option, a value that does not parse, or a number out of bounds.
    """
    parser = Parser(prog=prog, description=doc)
    hints = typing.get_type_hints(config)
    groups: dict[str | None, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        heading = field.metadata.get("group")
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading) if heading else parser
        _add_option(groups[heading], field, _without_none(hints[field.name]))
    argv = sys.argv[1:] if argv is None else argv
    values = vars(parser.parse_args(argv))
    for flag, defaults in (presets or {}).items():
        if values[flag]:
            parser.set_defaults(**defaults)
            values = vars(parser.parse_args(argv))
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _add_option(parser: Any, field: dataclasses.Field, kind: Any) -> None:
    metadata = field.metadata
    help, metavar = metadata["help"].replace("%", "%%"), metadata.get("metavar")
    name = "--" + field.name.replace("_", "-")
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, nargs="+", help=help, metavar=metavar)
    elif kind is bool:
        parser.add_argument(name, action="store_true", help=help)
    else:
        if field.default is not None and "default" not in help:
            help += f" (default: {field.default})"
        metavar = metavar or {int: "N", float: "X", Path: "PATH"}.get(kind)
        # check() makes a string a Path, after it has looked for a URL.
        values = {"nargs": "*"} if typing.get_origin(kind) is tuple else {"type": str if kind is Path else kind}
        choices = metadata.get("choices")
        parser.add_argument(name, default=field.default, help=help, metavar=metavar, choices=choices, **values)


def _without_none(hint: Any) -> Any:
    """Return ``X`` of ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(choice for choice in typing.get_args(hint) if choice is not type(None))
    return hint


def check(config: Any) -> None:
    """Check every option of a frozen dataclass, for its ``__post_init__``; a str for a path becomes a Path.

    Raises:
        UserError: a value of the wrong type, not finite, out of bounds, or none of the choices.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), _without_none(hints[field.name])
        if value is not None or kind is hints[field.name]:
            object.__setattr__(config, field.name, _converted(field, kind, value))


def _converted(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    name, metadata = "--" + field.name.replace("_", "-"), field.metadata
    if field.default is dataclasses.MISSING:  # given without a name
        name = metadata.get("metavar", field.name)
    is_tuple = typing.get_origin(kind) is tuple
    if is_tuple and (not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value)):
        raise UserError(f"{name} {value!r}: give a tuple or list of names")
    for text in value if is_tuple else [value]:
        is_url = isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE)
        if is_url and "URL" not in metadata.get("metavar", ""):
            raise UserError(f"{name} {text}: this is a URL, and nothing is downloaded from it; name a file or folder")
    if is_tuple:
        return tuple(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} {value!r}: give {_NOUNS[kind]}")
    if metadata.get("choices") and value not in metadata["choices"]:
        raise UserError(f"{name} {value}: choose from {', '.join(metadata['choices'])}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} {value}: give a finite number")
    bounds = {"max": 10**9, **metadata} if kind is int else metadata
    for bound, (words, holds) in _BOUNDS.items():
        if bound in bounds and not holds(value, bounds[bound]):
            raise UserError(f"{name} must be {words} {bounds[bound]:,}, not {value}")
    return value


_BOUNDS = {"above": ("more than", gt), "min": ("at least", ge), "max": ("at most", le)}
_NOUNS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", Path: "a path"}


def to_json(config: Any) -> dict[str, Any]:
    """Return the config as in ``config.json``: paths as strings, tuples as lists."""
    values = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
