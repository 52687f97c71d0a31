"""Variants of GPSNet: a preset with settings of its network and training changed, under a name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import isfinite
from typing import Any

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import MethodError
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.methods.gpsnet.config import KNOWN, TRAININGS, Config, TrainingConfig
from gpattern_bench.methods.gpsnet.method import GPSNetMethod
from gpattern_bench.tables.model_output import Variant

__all__ = ["BASES", "check_name", "make_variant", "parse_settings", "split_settings"]

BASES = ("gpsnet", "gpsnet_context", "gpsnet_coordinates", "coordinate_mlp", "gpsnet_outlines")
"""Methods that have variants."""

_NETWORK = {
    field.name: str(field.type)
    for field in fields(Config)
    if field.name not in ("genes", "patterns")  # the training cells'
}
_TRAINING = {field.name: str(field.type) for field in fields(TrainingConfig)}
_KINDS = _NETWORK | _TRAINING
_TOLD = {
    "int": "a whole number",
    "float": "a number",
    "int | float": "a number",
    "bool": "true or false",
    "tuple[float, float]": "two numbers with a comma between",
}
_LONGEST = 60  # letters of a method's name on the board


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read settings of the form ``KEY=VALUE``.

    Raises
    ------
    MethodError
        A key is unknown or given twice, or a value is of another type; the text lists what may be
        given.

    Examples
    --------
    >>> parse_settings(["neighbours=64", "rate=1e-4", "betas=0.9,0.99", "pooled=true"])
    {'neighbours': 64, 'rate': 0.0001, 'betas': (0.9, 0.99), 'pooled': True}
    """
    found: dict[str, Any] = {}
    problems, allowed = [], ""
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            problems.append(f"{shorten(text)}: expected KEY=VALUE")
        elif key in found:
            problems.append(f"{key} is set twice: set it once")
        elif key in _KINDS:
            try:
                found[key] = _parsed(key, value.strip())
            except ValueError:
                problems.append(f"{key} is {shorten(value)}, expected {_expected(key)}")
        else:
            near = difflib.get_close_matches(key, _KINDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"GPSNet has no setting {shorten(key)}{hint}")
            allowed = (
                f". Of the network: {_listed(_NETWORK)}. Of its training: {_listed(_TRAINING)}"
            )
    if problems:
        raise MethodError(f"--set: {'; '.join(problems)}{allowed}")
    return found


def _parsed(key: str, text: str) -> Any:
    kind = _KINDS[key]
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if kind == "str":
        if text not in KNOWN[key]:
            raise ValueError
        return text
    if kind == "tuple[float, float]":
        first, second = text.split(",")
        return _number(first), _number(second)
    if kind != "float" and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return int(text)
    if kind == "int":
        raise ValueError
    return _number(text)


def _number(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError
    return value


def _expected(key: str) -> str:
    return " or ".join(KNOWN[key]) if key in KNOWN else _TOLD[_KINDS[key]]


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{key} ({_expected(key)})" for key in kinds)


def split_settings(
    preset: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide settings into those of the network and those of the training, and check both.

    Raises
    ------
    MethodError
        The preset is unknown, or no network or training can have these settings.
    """
    if preset not in TRAININGS:
        raise MethodError(f"no GPSNet named {preset!r}; known: {', '.join(TRAININGS)}")
    if unknown := sorted(settings.keys() - _KINDS.keys()):
        raise MethodError(f"GPSNet has no settings {', '.join(map(shorten, unknown))}")
    network = {key: value for key, value in settings.items() if key in _NETWORK}
    training = {key: value for key, value in settings.items() if key in _TRAINING}
    try:
        Config.preset(preset, (), ("any",), **network)
        replace(TRAININGS[preset], **training)
    except TypeError as error:  # not of :func:`parse_settings`
        raise MethodError(f"a setting of GPSNet is of another type: {error}") from error
    return network, training


def check_name(name: str) -> str:
    """Check that a variant may have a name: one that no other method has, fit for the board.

    Raises
    ------
    MethodError
        It may not.
    """
    if name in METHODS:
        raise MethodError(f"{name} is the name of a method of this package: choose another --name")
    if len(name) > _LONGEST or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise MethodError(
            f"--name {shorten(name)}: expected at most {_LONGEST} lower-case letters, digits and _,"
            " the first a letter"
        )
    return name


def make_variant(variant: Variant, name: str) -> type[GPSNetMethod]:
    """Make the class of a variant; an object of it is a method like others.

    A training setting holds in all stages of the training. With ``epochs`` or ``steps`` the
    preset ``gpsnet`` too is trained in one stage, on all cells together.

    Raises
    ------
    MethodError
        The name is taken, or the variant impossible.
    """
    check_name(name)
    if variant.base not in BASES:
        raise MethodError(
            f"{shorten(variant.base)} has no presets and settings; those that have: "
            f"{', '.join(BASES)}"
        )
    base = type(get_method(variant.base))
    assert issubclass(base, GPSNetMethod)
    network, training = split_settings(variant.preset, base.own_changes | variant.settings)
    told = ", ".join(f"{key} {_shown(value)}" for key, value in variant.settings.items())
    about = replace(
        base.about,
        name=name,
        label=name,
        summary=f"{base.about.label}, preset {variant.preset}" + f", with {told}." * bool(told),
    )
    own = {
        "about": about,
        "variant": variant,
        "own_preset": variant.preset,
        "own_changes": network,
        "own_training": training,
        "__doc__": about.summary,
    }
    return type(base.__name__, (base,), own)


def _shown(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple | list) else str(value).lower()
