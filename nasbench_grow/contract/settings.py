"""Variants of a method: ``grow[growth=0.3,selectivity=0]`` names ``grow`` with those settings changed.

A variant has one name, so that it is one cell: settings sorted by name, each value in one spelling.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nasbench_grow.base.errors import UserError, unknown

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", types.NoneType: "none"}


def split(name: str) -> tuple[str, dict[str, str] | None]:
    """The plain name of a method and the settings in brackets after it, as they were typed; None without brackets.

    Raises:
        UserError: the brackets do not hold ``setting=value`` pairs, each setting once.
    """
    base, bracket, rest = name.partition("[")
    if not bracket:
        return name, None
    pairs = [pair.partition("=") for pair in rest.strip().removesuffix("]").split(",")]
    settings = {setting.strip(): text.strip() for setting, _, text in pairs}
    whole = rest.strip().endswith("]") and all(settings) and all(settings.values()) and len(settings) == len(pairs)
    if not whole or any(sign in text for text in settings.values() for sign in "[]="):
        raise UserError(
            f"method {name!r} cannot be read: write its settings as '{base}[setting=value,setting=value]', each once "
            "and all in quotes"
        )
    return base.strip(), settings


def spell(base: str, values: Mapping[str, Any]) -> str:
    """The one name of the variant of ``base`` with these settings."""
    return f"{base}[{','.join(f'{setting}={_text(value)}' for setting, value in sorted(values.items()))}]"


def kinds(settings: Any) -> dict[str, Any]:
    """The type of each field of a dataclass (instance or class), by name."""
    hints = get_type_hints(settings if isinstance(settings, type) else type(settings))
    return {field.name: hints[field.name] for field in dataclasses.fields(settings) if field.init}


def read(
    method: str, settings: Mapping[str, str], kinds: Mapping[str, Any], examples: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of settings given as text.

    Args:
        method: whose settings they are.
        settings: what was typed, by setting.
        kinds: type of every setting that there is: bool, int, float, str, None, a literal, or a union of them.
        examples: a value of every setting that is allowed.

    Raises:
        UserError: there is no such setting, or its text is no value of its type.
    """
    values = {}
    for setting, text in settings.items():
        if setting not in kinds:
            raise unknown(f"setting of {method}", setting, kinds)
        try:
            values[setting] = _value(text, kinds[setting])
        except ValueError as error:
            raise refused(method, setting, text, _allowed(kinds[setting]), examples[setting]) from error
    return values


def refused(method: str, setting: str, text: Any, allowed: str, example: Any) -> UserError:
    """The error for a value that a setting cannot have."""
    return UserError(
        f"{setting} of {method} cannot be {text!s} (allowed: {allowed}); write for example "
        f"'{spell(method, {setting: example})}'"
    )


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
