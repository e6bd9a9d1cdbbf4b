"""Settings that declare their own flags: frozen dataclasses in which each field carries its flag.

    @dataclass(frozen=True, kw_only=True)
    class SearchConfig:
        results: int = flag("matches to print for each image", type=positive_int, default=5)

`utils.runtime.parser` builds the command line of a script from such a class, and the settings from the command line. In
Python, `SearchConfig(results=3)` works as for any other dataclass.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

SOURCE = "source"  # key of a field's metadata: where its value comes from, a Flag, a Part or one of these
FIXED, ALL_FLAGS = "fixed", "all flags"
MAX_INT = 2**31 - 1
Values = Mapping[str, Any]  # {flag, without dashes: value}


class ArgumentParser(argparse.ArgumentParser):
    """The parser of every command line. Flags are not abbreviated, and one that is given twice is an error: argparse
    would ignore the first. A path that begins with ~ lies in the user's home: shells replace that in "--flag ~/file",
    but not in "--flag=~/file".
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.register("type", Path, user_path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which calls it for each command line, and for that of a sub-command."""
        words: Sequence[str] = sys.argv[1:] if args is None else args
        names = (word.partition("=")[0] for word in takewhile(lambda word: word != "--", words))
        counts = Counter(name for name in names if name in self._option_string_actions)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            self.error(f"{', '.join(twice)}: given more than once. Give each flag once, with all its values.")
        return super().parse_known_args(args, namespace)


def user_path(text: str) -> Path:
    """The path that a user states, in which ~ at the start is the home folder."""
    return Path(os.path.expanduser(text))


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How a field is set on the command line.

    help: without the default, which is added where it says something. name: without dashes; None for the field's name.
    options: of ArgumentParser.add_argument. default_from: gives the value if the flag is left out, from the other
    flags. convert: is applied to a value that was given. group: the heading in --help; None for that of the part.
    inverse: giving the flag makes the field False. may_change: a resumed training run may use another value. A field
    with the default None keeps it where its flag is left out.
    """

    help: str
    name: str | None = None
    default_from: Callable[[Values], Any] | None = None
    convert: Callable[[Any], Any] | None = None
    group: str | None = None
    inverse: bool = False
    may_change: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """How a field that is itself a class of settings is set: heading in --help, fields that have a fixed value here,
    and fields that have another flag here than their own.
    """

    title: str
    fixed: dict[str, Any]
    changed: dict[str, Any]


def flag(help: str, **options: Any) -> Any:
    """A field with a flag. `options` are the fields of Flag, and the options of ArgumentParser.add_argument.

    The field has the `default` of the options. Without one the flag is required, unless `default_from` gives a value:
    then the field's own default is None. Where the type of the field leaves no choice, the parser adds the option:
    action of a bool, type and metavar of a Path, nargs of a tuple, metavar of a number.
    """
    own = {name: options.pop(name) for name in Flag.__dataclass_fields__.keys() & options.keys()}
    default = options.get("default", None if "default_from" in own else MISSING)
    return field(default=default, metadata={SOURCE: Flag(help=help, options=options, **own)})


def switch(help: str, **options: Any) -> Any:
    """A bool field that the flag sets, or with `inverse` clears."""
    return flag(help, **{"default": options.get("inverse", False), **options})


def fixed(value: Any) -> Any:
    """A field without a flag: on the command line it always has this value, which is its default too."""
    return field(default=value, metadata={SOURCE: FIXED})


def part(
    title: str, *, default: Any = MISSING, fixed: dict[str, Any] | None = None, changed: dict[str, Any] | None = None
) -> Any:
    """A field whose type is a class of settings, with the flags of that class: see Part."""
    return field(default=default, metadata={SOURCE: Part(title=title, fixed=fixed or {}, changed=changed or {})})


def all_flags() -> Any:
    """A field that gets the values of all flags, {flag: value}, as JSON and checkpoints can hold them."""
    return field(metadata={SOURCE: ALL_FLAGS})


def _number(kind: Callable[[str], Any], least: float, expected: str, most: float) -> Callable[[str], Any]:
    """An argparse type."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}.")
        return value

    return parse


positive_int = _number(int, 1, f"a whole number from 1 to {MAX_INT}", most=MAX_INT)
non_negative_int = _number(int, 0, f"a whole number from 0 to {MAX_INT}", most=MAX_INT)
positive_float = _number(float, sys.float_info.min, "a number above 0", most=sys.float_info.max)
non_negative_float = _number(float, 0, "a number of 0 or more", most=sys.float_info.max)
decay = _number(float, sys.float_info.min, "a number above 0 and below 1", most=1 - sys.float_info.epsilon)
fraction = _number(float, sys.float_info.min, "a number above 0 and at most 1", most=1.0)


def seed_flag() -> Any:
    """The field seed."""
    return flag("random seed", group="other", type=non_negative_int, default=0)
