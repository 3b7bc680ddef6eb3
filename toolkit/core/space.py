"""The search space: what a sampler may choose, and how one choice is drawn from it.

A space is a mapping from a parameter's name to one of

- `Float`, `Int`, `Categorical`: a distribution,
- `Branch`: a categorical choice, each with parameters of its own that exist only when it is taken,
- a mapping: a group; its parameters are named `group/name` in the study and arrive nested in the model's parameters,
- anything else: a constant,

or a function of an Optuna-like trial (`suggest_float`, `suggest_int`, `suggest_categorical`) that returns the parameters:
"define by run".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from toolkit.core.errors import ExperimentError, nearest

FROZEN = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

Scalar = bool | int | float | str | None
Space = Mapping[str, Any] | Callable[..., Mapping[str, Any]]


class SuggestingTrial(Protocol):
    """The part of an Optuna trial that a space draws from."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar: ...


@dataclass(frozen=True, config=FROZEN)
class Float:
    """A real number in [low, high]. `log`: uniform in the logarithm. `step`: only low, low + step, …"""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Float:
        _check_range(self.low, self.high, self.log, self.step)
        return self


@dataclass(frozen=True, config=FROZEN)
class Int:
    """An integer in [low, high], both included. `log`: uniform in the logarithm. `step`: only low, low + step, …"""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @model_validator(mode="after")
    def _check(self) -> Int:
        _check_range(self.low, self.high, self.log, None if self.step == 1 else self.step)
        return self


@dataclass(frozen=True, config=FROZEN)
class Categorical:
    """One of `choices`: strings, numbers, booleans or None, without order."""

    choices: tuple[Scalar, ...]

    @model_validator(mode="after")
    def _check(self) -> Categorical:
        if not self.choices:
            raise ValueError("needs at least one choice")
        if len(set(map(repr, self.choices))) != len(self.choices):
            raise ValueError(f"choices must differ, got {list(self.choices)}")
        return self


@dataclass(frozen=True, config=FROZEN)
class Branch:
    """One of the names in `options`; the parameters of the option taken are drawn beside it, the others do not exist.

    >>> Branch({"gbtree": {}, "dart": {"rate_drop": Float(0.0, 0.5)}}).choices
    ('gbtree', 'dart')
    """

    options: Mapping[str, Mapping[str, Any]]

    @model_validator(mode="after")
    def _check(self) -> Branch:
        if not self.options:
            raise ValueError("needs at least one option")
        return self

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.options)


Distribution = Float | Int | Categorical | Branch


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low and high must be finite, got low={low}, high={high}")
    if low > high:
        raise ValueError(f"low <= high must hold, got low={low}, high={high}")
    if log and low <= 0:
        raise ValueError(f"log needs low > 0, got low={low}")
    if log and step is not None:
        raise ValueError(f"log and step exclude each other, got step={step}")
    if step is not None and step <= 0:
        raise ValueError(f"step must be positive, got {step}")


def leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every distribution and constant by its study name (`group/name`), those inside branches included."""
    for name, value in space.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ExperimentError("space: a parameter needs a name without '/'", got=repr(name))
        yield from _leaves_of(prefix + name, value, prefix)


def _leaves_of(path: str, value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from leaves(value, path + "/")
        return
    yield path, value
    if isinstance(value, Branch):
        for option in value.options.values():
            yield from leaves(option, prefix)


def check_space(space: Space) -> None:
    """Refuse an empty space, a bad name, and a name that two places define differently.

    Raises:
        ExperimentError: with the parameter's name.
    """
    if not isinstance(space, Mapping):
        return
    seen: dict[str, Any] = {}
    has_distribution = False
    for name, value in leaves(space):
        if name in seen and seen[name] != value:
            raise ExperimentError(
                f"space: parameter {name!r} is defined twice, differently",
                got=f"{seen[name]} and {value}",
                next_step="give the two different names, or draw them in a function of the trial (define by run)",
            )
        seen[name] = value
        has_distribution = has_distribution or isinstance(value, Distribution)
    if not has_distribution:
        raise ExperimentError(
            "space: needs at least one Float, Int, Categorical or Branch",
            got=f"{len(seen)} constants" if seen else "an empty space",
            next_step='for example space={"max_depth": Int(4, 20)}',
        )


def draw(space: Space, trial: SuggestingTrial) -> dict[str, Any]:
    """One set of parameters, groups nested, drawn through `trial`."""
    if not isinstance(space, Mapping):
        return dict(space(trial))
    return _draw(space, trial, "")


def _draw(space: Mapping[str, Any], trial: SuggestingTrial, prefix: str) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in space.items():
        path = prefix + name
        if isinstance(value, Float):
            params[name] = trial.suggest_float(path, value.low, value.high, step=value.step, log=value.log)
        elif isinstance(value, Int):
            params[name] = trial.suggest_int(path, value.low, value.high, step=value.step, log=value.log)
        elif isinstance(value, Categorical):
            params[name] = trial.suggest_categorical(path, value.choices)
        elif isinstance(value, Branch):
            taken = trial.suggest_categorical(path, value.choices)
            params[name] = taken
            params.update(_draw(value.options[str(taken)], trial, prefix))
        elif isinstance(value, Mapping):
            params[name] = _draw(value, trial, path + "/")
        else:
            params[name] = value
    return params


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by their study names: `{"tree": {"depth": 3}}` → `{"tree/depth": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def check_point(space: Space, point: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A point to evaluate first, flat or nested, by study names. Constants may be repeated; they must agree.

    Raises:
        ExperimentError: an unknown name, a value outside its distribution, a constant with another value.
    """
    flat = flatten(point)
    if not isinstance(space, Mapping):
        return flat
    known = dict(leaves(space))
    chosen: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in known:
            raise ExperimentError(f"{where}: unknown parameter", got=repr(name), next_step=nearest(name, known))
        distribution = known[name]
        if isinstance(distribution, Distribution):
            if not _contains(distribution, value):
                raise ExperimentError(
                    f"{where}.{name} must be {_described(distribution)}", got=repr(value), next_step="correct one of the two"
                )
            chosen[name] = value
        elif distribution != value:
            raise ExperimentError(f"{where}.{name} is the constant {distribution!r}", got=repr(value), next_step="leave it out")
    return chosen


def _contains(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, Categorical | Branch):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(distribution, Int) and not float(value).is_integer():
        return False
    return distribution.low <= value <= distribution.high


def _described(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical | Branch):
        return f"one of {', '.join(map(repr, distribution.choices))}, as the space says"
    kind = "a whole number" if isinstance(distribution, Int) else "a number"
    return f"{kind} from {distribution.low:g} to {distribution.high:g}, as the space says"
