"""Overrides as users type them: paths with any characters, misspelled keys, values that cannot be parsed.

In Hydra's grammar of values, `=`, brackets, commas and most other punctuation have a meaning. The value of a key that
holds text is therefore quoted for Hydra, unless it is plain.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from compress.config.options import describe
from compress.config.schema import Config, SearchConfig
from compress.utils.errors import UserError
from compress.utils.nearest import nearest

PATHS = ("data.root", "teacher.checkpoint", "cache.dir", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
GROUPS = ("recipe", "data", "hydra/launcher", "hydra/sweeper")
_SEARCH = "hydra.sweeper."
_TYPED = re.compile(r"(\+{0,2}|~)([^\s=]+)=(.*)", re.DOTALL)
_FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r",
    "--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir",
    "-cd", "--experimental-rerun", "--info", "-i",
)  # fmt: skip
_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
}  # fmt: skip


def quote_overrides(arguments: Sequence[str]) -> list[str]:
    """Quotes the text values of a command line that Hydra would read as something else.

    Raises UserError, which names what to type, for an argument that is no key=value and for a value that cannot be
    parsed.
    """
    multirun = bool({"-m", "--multirun"} & set(arguments))
    texts, done = _text_keys(), []
    arguments = _flags_last(arguments)
    for at, argument in enumerate(arguments):
        if argument.startswith("-"):
            _require_flag(argument, arguments[at + 1 : at + 2])
        elif not _is_flags(arguments, at) and not argument.startswith("~"):
            match = _TYPED.fullmatch(argument)
            if match is None:
                raise _not_an_override(arguments, at)
            sign, key, value = match.groups()
            _require_key(key, value)
            if key in texts or key == "recipe":
                argument = f"{sign}{key}={quote_text_value(key, value, multirun)}"
            _require_value(argument, key, value, multirun)
        done.append(argument)
    return done


def _is_flags(arguments: Sequence[str], at: int) -> bool:
    """Whether an argument is a flag, or the value of the flag before it."""
    before = arguments[at - 1] if at else ""
    return arguments[at].startswith("-") or (before in _WITH_VALUE and "=" not in arguments[at])


def _flags_last(arguments: Sequence[str]) -> Sequence[str]:
    """Moves flags after the overrides where a flag is between overrides, which Hydra does not accept."""
    flags = [_is_flags(arguments, at) for at in range(len(arguments))]
    if flags == sorted(flags) or flags == sorted(flags, reverse=True):
        return arguments
    return [
        *(text for text, flag in zip(arguments, flags, strict=True) if not flag),
        *(text for text, flag in zip(arguments, flags, strict=True) if flag),
    ]


def parse_override(argument: str) -> Override | None:
    """Returns an override as Hydra reads it; None where Hydra cannot parse it."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def overrides_of(key: str, arguments: Sequence[str]) -> list[Override]:
    """Returns the overrides of `key` among `arguments`, in their order, without those that Hydra cannot parse."""
    read = (parse_override(argument) for argument in arguments)
    return [override for override in read if override is not None and override.key_or_group == key]


def override_value(key: str, arguments: Sequence[str]) -> Any:
    """Returns the value that the last override of `key` sets; None where there is no such override."""
    named = overrides_of(key, arguments)
    value = named[-1].value() if named else None
    return value.text if isinstance(value, QuotedString) else value


def quote(text: str) -> str:
    """Quotes a value, so that Hydra reads it as text."""
    return QuotedString(text, Quote.single).with_quotes()


def known_keys() -> dict[str, str]:
    """Returns every key that users may type, with its help."""
    rows = [*describe(Config()), *describe(SearchConfig(), _SEARCH)]
    hydra = {key: "a folder" for key in PATHS if key.startswith("hydra.")} | {"hydra.verbose": "true or false"}
    return {name: help for name, _, help in rows if not name.endswith("_target_")} | hydra


def similar_keys(key: str) -> list[str]:
    """Returns the keys that a mistyped key probably means, the likeliest first."""
    keys = known_keys()
    section, _, last = key.rpartition(".")
    same = [known for known in keys if known.rpartition(".")[2] == last.lower()]
    if not same:
        return nearest(key, [*GROUPS, *keys], 1, cutoff=0.7)
    near = nearest(section, {known.rpartition(".")[0] for known in same}, 1)
    return [f"{near[0]}.{last.lower()}"] if near else same


def unknown_key(key: str, where: str = "") -> UserError:
    """Returns the error for a key that does not exist, or that is a section; `where` names the place it was found."""
    inside = [known for known in known_keys() if known.startswith(f"{key}.")]
    if inside:
        return UserError(f"{key}{where}, which is a section", "one of its keys", f"set one of {', '.join(inside)}")
    found = similar_keys(key)
    meant = f"did you mean {' or '.join(found)}?" if found else "see python -m compress --help"
    return UserError(f"{key}{where}, which is no key", "keys that exist", meant)


def for_shell(key: str, value: str) -> str:
    """Returns key=value to paste into a shell, with the value in quotes for Hydra."""
    mark = Quote.single if '"' in value else Quote.double
    return shlex.quote(f"{key}={QuotedString(value, mark).with_quotes()}")


def quote_text_value(key: str, value: str, multirun: bool) -> str:
    """Returns the value of a text key in the form that Hydra needs: unchanged where Hydra reads it as text anyway."""
    if not value.strip() or (value[0] in "'\"" and value[-1] == value[0] and len(value) > 1):
        return value
    if key in PATHS and value.startswith("~/"):  # a shell only expands it at the start of a word
        value = str(Path(value).expanduser())
    found = parse_override(f"{key}={value}")
    whole = not multirun or key.startswith("hydra.") or os.path.exists(value)
    if found is None and "," in value and not whole:  # one of several values needs quotes
        return ",".join(quote_text_value(key, part, multirun) for part in value.split(","))
    if found is None:
        return quote(value)
    if found.is_sweep_override():
        path = key in PATHS or value.endswith(".yaml")
        return quote(value) if whole and (path or os.path.exists(value)) else value
    return value if found.value() is None or isinstance(found.value(), (str, QuotedString)) else quote(value)


def _text_keys() -> set[str]:
    """Returns the keys whose values are text."""
    return {*_keys_of((str, Optional[str]), Config()), *_keys_of((str,), SearchConfig(), _SEARCH), *PATHS}


def _list_keys() -> set[str]:
    """Returns the keys whose values are lists."""
    types = (list[str], list[int], list[float], Optional[list[float]])
    return {*_keys_of(types, Config()), *_keys_of(types, SearchConfig(), _SEARCH)}


def _keys_of(types: tuple[Any, ...], config: Any, prefix: str = "") -> Iterator[str]:
    """Yields the keys of `config` and below whose values have one of these types."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _keys_of(types, value, f"{prefix}{item.name}.")
        elif item.type in types:
            yield prefix + item.name


def _require_key(key: str, value: str) -> None:
    """Raises UserError for a key that does not exist. Hydra checks its own keys; it would accept any key after a +."""
    if key in known_keys() or key in GROUPS or key.startswith("hydra"):
        return
    if not value.startswith("{") or key not in {known.partition(".")[0] for known in known_keys()}:
        raise unknown_key(key)


def _require_flag(argument: str, following: Sequence[str]) -> None:
    """Raises UserError for a key with dashes before it, and for a flag that Hydra does not have."""
    flag, equals, value = argument.partition("=")
    if any(known.startswith(flag) if flag.startswith("--") else known == flag for known in _FLAGS):
        return
    key = flag.lstrip("-")
    if key in known_keys() or key in GROUPS:
        value = value if equals else next(iter(following), "VALUE")
        raise UserError(argument, "keys without dashes", f"write {shlex.quote(f'{key}={value}')}")
    found = nearest(flag, _FLAGS, 1)
    meant = f"did you mean {found[0]}?" if found else "see python -m compress --hydra-help"
    raise UserError(argument, "a flag that exists, or key=value", meant)


def _not_an_override(arguments: Sequence[str], at: int) -> UserError:
    """Returns the error for an argument that is no key=value, e.g. a part of a path that the shell split at a space."""
    end = next((i for i in range(at, len(arguments)) if "=" in arguments[i].strip("=")), len(arguments))
    key, _, rest = re.sub("[:/]", "=", arguments[at], count=1).partition("=")
    key, rest = (arguments[at], "") if arguments[at] in GROUPS else (key, rest)
    if key in known_keys() or key in GROUPS:
        value = rest or " ".join(arguments[at + 1 : end]).strip("= ") or "VALUE"
        return UserError(arguments[at], "key=value, without spaces", f"write {shlex.quote(f'{key}={value}')}")
    before = _TYPED.fullmatch(arguments[at - 1]) if at else None
    if before and before[2] in _text_keys() | {"recipe"} and (before[2] != "recipe" or "/" in before[3]):
        return UserError(
            f"{arguments[at]} behind {arguments[at - 1]}",
            "key=value; a shell ends an argument at a space",
            f"put it in quotes: {shlex.quote(' '.join(arguments[at - 1 : end]))}",
        )
    found = similar_keys(key)
    meant = f"did you mean {found[0]}=VALUE?" if found else f"write {shlex.quote(key)}=VALUE, or remove it"
    return UserError(arguments[at], "key=value", meant)


def _require_value(argument: str, key: str, value: str, multirun: bool) -> None:
    """Raises UserError for a value that Hydra cannot parse, and for several values where one is expected."""
    found = parse_override(argument)
    several = found is not None and found.is_sweep_override() and not multirun
    if found is not None and not several:
        return
    expected, plain = known_keys().get(key), for_shell(key, value)
    if key in _list_keys():
        inside = value.strip("[](){} ")
        mend = f"write a list in brackets: {shlex.quote(f'{key}=[{inside}]')}"
    elif several:
        one = f"; if it is one value, put it in quotes: {plain}" if key in _text_keys() else ""
        mend = f"add --multirun for a run with each{one}"
    elif expected and key not in _text_keys():
        mend = f"set {key} to such a value"
    else:
        mend = f"if it is text, put it in quotes: {plain}"
    raise UserError(argument, f"{'one value: ' if several else ''}{expected or 'a value that can be parsed'}", mend)
