"""From a class of settings to the command line of a script, and back: see utils.runtime.flags."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from model.errors import InputError
from utils.runtime.flags import ALL_FLAGS, FIXED, SOURCE, ArgumentParser, Flag, Part
from utils.runtime.terminal import accept_any_text, show_warnings

T = TypeVar("T")
NO_EFFECT_IN_REFERENCE = (  # flags that the reference accepts
    "criterion margin train_positives_dist_threshold lr_crn_net brightness contrast saturation hue rand_perspective "
    "horizontal_flip random_resized_crop random_rotation"
).split()

GROUPS = (
    "data",
    "model",
    "training",
    "images",
    "descriptors",
    "index",
    "upkeep",
    "search",
    "report",
    "service",
    "access",
    "speed",
)  # in --help


class DeclaredFlag(NamedTuple):
    """A flag, its name without dashes, its heading in --help, and the type of its field."""

    name: str
    flag: Flag
    group: str
    kind: Any


def parse(
    settings: type[T],
    description: str | None,
    *,
    argv: Sequence[str] | None = None,
    module: str | None = None,
    refused: dict[str, str] | None = None,
) -> T:
    """The settings that the command line of a script states. Exits with status 2 if they are not valid.

    argv: the command line, if it is not that of the process. module: what `python -m` runs, if it is no script.
    refused: {flag: why it is an error}, for flags that a user may expect. Raises TypeError if the class does not say
    for each field where its value comes from.
    """
    accept_any_text()
    show_warnings()
    parser = build_parser(settings, description, module=module, refused=refused)
    return settings_from(parser, settings, parser.parse_args(argv))


def build_parser(
    settings: type, description: str | None, *, module: str | None = None, refused: dict[str, str] | None = None
) -> ArgumentParser:
    """A parser with the flags of a class of settings, in groups. Raises TypeError as `parse` does."""
    parser = ArgumentParser(
        prog=module and f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, settings)
    no_effect = {f"--{name}": "had no effect in the reference; remove it." for name in NO_EFFECT_IN_REFERENCE}
    hidden = argparse.SUPPRESS
    for name, reason in {**no_effect, **(refused or {})}.items():
        parser.add_argument(name, action=_Refused, nargs="*", const=reason, help=hidden, default=hidden)
    return parser


def add_flags(parser: ArgumentParser, settings: type) -> None:
    """Adds the flags of a class of settings. Raises TypeError as `parse` does."""
    flags = declared_flags(settings, "other")
    titles = sorted({declared.group for declared in flags}, key=lambda title: (*GROUPS, title).index(title))
    groups = {title: parser.add_argument_group(title) for title in titles}
    for name, declared, title, kind in flags:
        options = options_of(name, declared, kind)
        is_positional = options.pop("positional", False)
        text = declared.help
        if declared.default_from:
            options["default"] = None
        elif declared.inverse:
            options["default"] = None if options["default"] is None else False
        elif "default" not in options:
            options |= {} if is_positional else {"required": True}
        elif not any(options["default"] is value for value in (None, False, ())):
            default = options["default"]
            text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
        if "choices" in options or options.get("action"):
            options.pop("metavar", None)
        groups[title].add_argument(name if is_positional else f"--{name}", help=text, **options)


def options_of(name: str, declared: Flag, kind: Any) -> dict[str, Any]:
    """The options of a flag: those that it states, and otherwise what the type of its field says.

    A path is that of a folder if the flag's name ends like one.
    """
    is_union = get_origin(kind) in (Union, UnionType)
    kinds = [each for each in (get_args(kind) if is_union else (kind,)) if each is not NoneType]
    options: dict[str, Any] = {"metavar": {int: "N", float: "X"}.get(kinds[0], name.upper())}
    if get_origin(kinds[0]) is tuple:
        parts = get_args(kinds[0])
        options = {"nargs": "+" if parts[-1] is Ellipsis else len(parts), "metavar": "N"}
    elif kinds == [bool]:
        options = {"action": "store_true"}
    elif Path in kinds:
        is_folder = name.endswith(("folder", "index", "root", "run", "pictures"))
        options = {"type": Path, "metavar": "DIR" if is_folder else "FILE"}
    return options | declared.options


def settings_from(parser: ArgumentParser, settings: type[T], args: argparse.Namespace) -> T:
    """The settings of the flags in `args`. Exits with status 2, as argparse does, if they are not valid."""
    try:
        return _build(settings, _Values(args, declared_flags(settings, "other")))
    except (InputError, OSError) as error:
        parser.error(str(error))


class _Values(dict[str, Any]):
    """{flag: value}. One that was left out and whose default depends on others is computed when it is asked for."""

    def __init__(self, args: argparse.Namespace, declared: list[DeclaredFlag]) -> None:
        self._default_from = {name: flag.default_from for name, flag, *_ in declared if flag.default_from}
        for name, flag, *_ in declared:
            value = getattr(args, name)
            if value is not None or not flag.default_from:
                self[name] = flag.convert(value) if flag.convert and value is not None else value

    def __missing__(self, name: str) -> Any:
        self[name] = self._default_from[name](self)
        return self[name]

    def plain(self) -> dict[str, Any]:
        """The values of all flags, as JSON and checkpoints can hold them."""
        return {name: _plain(self[name]) for name in (*self, *(self._default_from.keys() - self.keys()))}


def declared_flags(settings: type, title: str) -> list[DeclaredFlag]:
    """All flags of a class of settings, and of the classes that it consists of, once each.

    Raises TypeError if two fields declare one flag differently.
    """
    found: dict[str, DeclaredFlag] = {}
    for declared in _walk(settings, title, None):
        if found.setdefault(declared.name, declared).flag != declared.flag:
            raise TypeError(f"--{declared.name} is declared twice, and not in the same way.")
    return list(found.values())


def _walk(settings: type, title: str, within: Part | None) -> Iterator[DeclaredFlag]:
    """Raises TypeError if a field's value comes from nowhere, or if a part names a field that there is not."""
    fields, types = {item.name: item for item in dataclasses.fields(settings)}, get_type_hints(settings)
    unknown = {*within.fixed, *within.changed} - fields.keys() if within else set()
    if unknown:
        raise TypeError(f"{settings.__name__} has no field {', '.join(sorted(unknown))}.")
    for name, item in fields.items():
        source = _source(item, within)
        if isinstance(source, Part):
            yield from _walk(types[name], source.title, source)
        elif isinstance(source, Flag):
            yield DeclaredFlag(source.name or name, source, source.group or title, types[name])
        elif source not in (FIXED, ALL_FLAGS):
            raise TypeError(f"{settings.__name__}.{name} has neither a flag nor a fixed value.")


def changeable_flags(settings: type) -> set[str]:
    """The flags that a resumed training run may state differently."""
    return {name for name, declared, *_ in declared_flags(settings, "") if declared.may_change}


def _source(item: dataclasses.Field, within: Part | None) -> Any:
    """Where a field's value comes from: its own metadata, unless the part that it is in says otherwise."""
    if within and item.name in within.fixed:
        return FIXED
    changed = within.changed.get(item.name) if within else None
    return (changed or item).metadata.get(SOURCE)


def _build(settings: type[T], values: _Values, within: Part | None = None) -> T:
    types = get_type_hints(settings)
    built: dict[str, Any] = dict(within.fixed) if within else {}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        source = _source(item, within)
        if isinstance(source, Part):
            built[item.name] = _build(types[item.name], values, source)
        elif isinstance(source, Flag):
            value = values[source.name or item.name]
            value = tuple(value) if isinstance(value, list) else value
            built[item.name] = not value if source.inverse and value is not None else value
        elif source == ALL_FLAGS:
            built[item.name] = values.plain()
    return settings(**built)


def _plain(value: Any) -> Any:
    """The value as JSON and checkpoints can hold it: paths and addresses as text, settings as lists."""
    if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__:
        value = dataclasses.astuple(value)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _Refused(argparse.Action):
    """A flag that is an error whatever its values, as `const` explains: that it is unknown would not be helpful."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(f"{self.option_strings[0]} {self.const}")
