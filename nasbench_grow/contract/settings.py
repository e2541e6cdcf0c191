"""Settings of a method: a frozen dataclass on its class, from which parsing, spelling, help and run key come.

``grow[growth=0.3,periods=40]`` names ``grow`` with those settings changed. A method has one spelling for each set of
values, so that it is one cell: settings at their defaults are left out, the others are sorted by name.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

from nasbench_grow.base.errors import UserError, unknown

MethodName = NewType("MethodName", str)
"""Type of a setting that names another method, which may have settings of its own."""

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    types.NoneType: "none",
    MethodName: "a method",
}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a method that has nothing to set."""


def split(name: str) -> tuple[str, dict[str, str]]:
    """The plain name of a method and the settings in brackets after it, as they were typed.

    A value may have brackets of its own: ``retrain[of=grow[growth=0.3]]``.

    Raises:
        UserError: the brackets do not hold ``setting=value`` pairs, each setting once.
    """
    base, bracket, rest = name.strip().partition("[")
    if not bracket:
        return base, {}
    inside = rest.removesuffix("]")
    pairs = [pair.partition("=") for pair in split_list(inside)]
    settings = {setting.strip(): text.strip() for setting, _, text in pairs}
    whole = rest.endswith("]") and inside.count("[") == inside.count("]")
    if not (whole and all(settings) and all(settings.values()) and len(settings) == len(pairs)):
        raise UserError(
            f"method {name!r} cannot be read: write its settings as '{base}[setting=value,setting=value]', each once "
            "and all in quotes"
        )
    return base.strip(), settings


def split_list(text: str) -> list[str]:
    """The parts of a list between commas; those inside brackets do not divide."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def spell(base: str, settings: Any) -> str:
    """The one name of the method ``base`` with these settings (a dataclass)."""
    changed = {
        field.name: value
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) != field.default
    }
    if not changed:
        return base
    return f"{base}[{','.join(f'{name}={_text(value)}' for name, value in sorted(changed.items()))}]"


def read(method: str, kind: type[Any], given: Mapping[str, str], canonical: Callable[[str], str] = str) -> Any:
    """The settings that were typed, as an instance of the method's dataclass ``kind``.

    ``canonical`` gives the one spelling of a method's name, for settings that name one (:data:`MethodName`).

    Raises:
        UserError: there is no such setting, its text is no value of its type, or the dataclass refuses the values.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    if given and not fields:
        raise UserError(f"method {method!r} has no settings; give the plain name")
    values = {}
    for setting, text in given.items():
        if setting not in fields:
            raise unknown(f"setting of {method}", setting, fields)
        try:
            kind_of = hints[setting]
            values[setting] = canonical(text) if kind_of is MethodName else _value(text, kind_of)
        except ValueError as error:
            default = _text(fields[setting].default)
            raise UserError(
                f"{setting} of {method} cannot be {text} (allowed: {_allowed(hints[setting])}); write for example "
                f"'{method}[{setting}={default}]'"
            ) from error
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{method}: {error}") from error


def check_types(settings: Any) -> None:
    """Raise UserError unless every setting is of its field's type, and every number finite.

    The other checks of this file begin with it, so a ``__post_init__`` that has one of them needs no more.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), hints[field.name]
        if _is_of(value, kind):
            continue
        if get_origin(kind) is Literal:
            raise unknown(field.name, _text(value), map(_text, get_args(kind)))
        raise UserError(f"{field.name} {value!r} cannot be used: give {_allowed(kind)}")


def check_share(settings: Any, *names: str) -> None:
    """Raise UserError unless these settings are shares, above 0 and up to 1. For ``__post_init__``."""
    check_types(settings)
    for name in names:
        value = getattr(settings, name)
        if not 0 < value <= 1:
            raise UserError(f"{name} {value:g} is out of range: it is a share, 0 < {name} <= 1")


def check_positive(settings: Any, *names: str) -> None:
    """Raise UserError unless these settings are above 0. For ``__post_init__``."""
    check_types(settings)
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise UserError(f"{name} {value:g} is out of range: give a number above 0")


def check_choices(settings: Any, **kinds: Any) -> None:
    """Raise UserError unless each named setting is one of the words of its Literal type; for ``__post_init__``."""
    check_types(settings)
    for name, kind in kinds.items():
        if getattr(settings, name) not in get_args(kind):
            raise unknown(name, getattr(settings, name), get_args(kind))


def help_of(kind: type[Any]) -> list[str]:
    """A line for each setting: name, default, allowed values."""
    hints = get_type_hints(kind)
    return [
        f"{field.name}={_text(field.default)} ({_allowed(hints[field.name])})" for field in dataclasses.fields(kind)
    ]


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the type that a field has: truth values are no numbers here, nor is infinity."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_of(value, member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return any(type(value) is type(word) and value == word for word in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is MethodName:
        return isinstance(value, str)
    return not isinstance(kind, type) or isinstance(value, kind)


def _value(text: str, kind: Any) -> Any:
    """The value of type ``kind`` that a text stands for; raises ValueError where there is none."""
    if get_origin(kind) in (Union, types.UnionType):
        # None first: as a word, "none" would also be a string
        for member in sorted(get_args(kind), key=lambda member: member is not types.NoneType):
            with suppress(ValueError):
                return _value(text, member)
    elif get_origin(kind) is Literal:
        for value in get_args(kind):
            if text == _text(value):
                return value
    elif kind in (bool, types.NoneType):
        for value in (True, False) if kind is bool else (None,):
            if text.lower() == _text(value):
                return value
    elif kind is float:
        number = float(text) + 0.0  # minus zero is spelt as zero
        if math.isfinite(number):
            return number
    elif kind in (int, str):
        return kind(text)
    raise ValueError(text)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _allowed(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_allowed(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(_text(value) for value in get_args(kind))
    return _WORDS.get(kind, str(kind))
