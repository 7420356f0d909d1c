"""Plain JSON values to a dataclass, with errors that name every wrong field."""

from __future__ import annotations

from dataclasses import MISSING, fields
from fractions import Fraction
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_plain(cls: type[T], values: Any, *, what: str) -> T:
    """An instance of the dataclass `cls` from its fields' values; `what` it is, for the error.

    Raises:
        ValueError: naming each unknown, missing or mistyped field; or what `cls` itself finds wrong.
    """
    if not isinstance(values, dict):
        raise ValueError(f"not {what}: {values!r}, wanted its fields by name")
    hints, known = get_type_hints(cls), fields(cls)  # type: ignore[arg-type]
    names = {field.name for field in known}
    wrong = [f"{name}: no such field" for name in values if name not in names]
    given: dict[str, Any] = {}
    for field in known:
        if field.name in values:
            try:
                given[field.name] = _converted(values[field.name], hints[field.name])
            except ValueError as error:
                wrong.append(f"{field.name} = {values[field.name]!r}, wanted {error}")
        elif field.default is MISSING and field.default_factory is MISSING:
            wrong.append(f"{field.name}: missing")
    if wrong:
        raise ValueError(f"not {what}: {'; '.join(wrong)}")
    return cls(**given)


def _converted(value: Any, kind: Any) -> Any:
    """`value` as a field of type `kind`. Raises ValueError with what was wanted."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"one of {', '.join(get_args(kind))}")
    elif isinstance(kind, UnionType):
        (only,) = (choice for choice in get_args(kind) if choice is not type(None))
        return None if value is None else _converted(value, only)
    elif kind is Fraction:
        try:
            return Fraction(str(value))  # through its decimal digits: 31.25 is 125/4, 43.07 is 4307/100
        except (ValueError, ZeroDivisionError):
            raise ValueError('a number, or a fraction like "125/4"') from None
    elif kind is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except ValueError:
            raise ValueError("a number") from None
    elif type(value) is not kind:  # True is no number of layers
        raise ValueError({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind])
    return value
