"""`--set`: any field of an experiment by its dotted path; and pydantic's errors in words that name the path.

All overrides are put in place first and validated once, from the leaves up, so that two that only hold together
(`model.device=cuda`, `sweep.gpus_per_trial=1`) may come in any order.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from toolkit.core import experiment as parts
from toolkit.core import space as distributions
from toolkit.core.errors import ExperimentError, UserError, nearest
from toolkit.core.experiment import Experiment

KEY = re.compile(r"[^.\[\]]+")
PATH = re.compile(rf"{KEY.pattern}(\.{KEY.pattern}|\[{KEY.pattern}\])*")
WORDS: Mapping[str, Any] = {"none": None, "None": None, "True": True, "False": False}


def override(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """`experiment` with `PATH=VALUE` applied, the later one winning.

    A path goes through fields, keys and list positions: `sweep.num_trials`, `space.max_depth.high`, `points_to_evaluate[0].max_depth`. A
    value is JSON, or else the text itself. A part takes an object, or the name of its kind (`sweep.scheduler=asha`). New keys are taken
    by free mappings (`model.params`, `sampler.options`), not by the space.

    Raises:
        ExperimentError: starting with the path.
    """
    pending = list(settings)
    if not pending:
        return experiment
    root = _thaw(experiment)
    for setting in pending:
        path, separator, text = setting.partition("=")
        if not separator or not PATH.fullmatch(path.strip()):
            raise ExperimentError("an override is PATH=VALUE", got=repr(setting), next_step="for example sweep.num_trials=200")
        _put(root, KEY.findall(path.strip()), text.strip())
    changed = _freeze(root, "")
    assert isinstance(changed, Experiment)
    return changed


@dataclasses.dataclass
class _Part:
    """A part of the experiment, thawed."""

    of: Any
    values: dict[str, Any]


class _Items(list[Any]):
    """A tuple, thawed; a list stays one, for in free mappings the difference may matter."""


def _thaw(value: Any) -> Any:
    if _is_part(type(value)):
        return _Part(type(value), {name: _thaw(getattr(value, name)) for name in _fields(type(value))})
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    if type(value) is tuple:
        return _Items(map(_thaw, value))
    return list(map(_thaw, value)) if type(value) is list else value


def _freeze(node: Any, path: str) -> Any:
    def child(key: Any, item: Any) -> Any:
        return _freeze(item, f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key))

    if isinstance(node, _Part):
        try:
            return node.of(**{key: child(key, item) for key, item in node.values.items()})
        except ValidationError as error:
            raise ExperimentError(problems(error, path)) from error
    if isinstance(node, dict):
        return {key: child(key, item) for key, item in node.items()}
    if isinstance(node, list):
        items = [child(number, item) for number, item in enumerate(node)]
        return tuple(items) if isinstance(node, _Items) else items
    return node


def _put(root: _Part, keys: Sequence[str], text: str) -> None:
    node: Any = root
    for number, key in enumerate(keys):
        where = _dotted(keys[: number + 1])
        is_last = number == len(keys) - 1
        slot = _slot(node, key, keys[: number + 1], may_add=is_last and keys[0] != "space")
        if is_last:
            node_of = node.of if isinstance(node, _Part) else None
            current = _get(node, slot)
            _items(node)[slot] = _shaped(_parse(text), text, _annotation(node_of, key), current, where)
            return
        parent, node = node, _get(node, slot)
        if isinstance(node, _Part | dict | list):
            continue
        kinds = _kinds(_annotation(parent.of, key)) if isinstance(parent, _Part) else {}
        advice = f"set it first: --set {where}={next(iter(kinds))}" if kinds else f"nothing lies below {where}"
        raise ExperimentError(f"{_dotted(keys)}: {where} must have fields", got=repr(node), next_step=advice)


def _dotted(keys: Sequence[str]) -> str:
    return "".join(f"[{key}]" if key.isdecimal() else f".{key}" for key in keys).lstrip(".")


def _items(node: Any) -> Any:
    return node.values if isinstance(node, _Part) else node


def _get(node: Any, slot: Any) -> Any:
    items = _items(node)
    return items[slot] if isinstance(items, list) else items.get(slot)


def _slot(node: Any, key: str, path: Sequence[str], *, may_add: bool) -> Any:
    """The key under which `node` holds `key`, or will."""
    where = _dotted(path)
    if isinstance(node, list):
        if key.isdecimal() and int(key) < len(node):
            return int(key)
        raise ExperimentError(f"{where}: " + (f"must be a position from 0 to {len(node) - 1}" if node else "the list is empty"), got=key)
    known = _fields(node.of) if isinstance(node, _Part) else list(map(str, node))
    if key in known or (may_add and isinstance(node, dict)):
        return key
    what = "parameter" if path[0] == "space" and isinstance(node, dict) else "field"
    raise ExperimentError(f"{where}: unknown {what}", got=repr(key), next_step=nearest(key, known))


def _parse(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shaped(value: Any, text: str, annotation: Any, current: Any, where: str) -> Any:
    """`value` in the form the place asks for: a part for an object or the name of its kind, the plain text for a string."""
    classes = [member for member in _members(annotation) if _is_part(member)]
    if annotation is None and isinstance(current, _Part):  # a distribution of the space
        classes = [current.of]
    kinds = _kinds(annotation)
    if isinstance(value, dict) and classes:
        of = kinds.get(value.get("kind")) or (current.of if isinstance(current, _Part) and current.of in classes else None)
        if of is None and len(classes) > 1:
            raise ExperimentError(f"{where}: kind must be one of {', '.join(kinds)}", got=repr(value.get("kind")))
        return _Part(of or classes[0], dict(value))
    if isinstance(value, str) and kinds:
        if value not in kinds:
            raise ExperimentError(f"{where}: kind must be one of {', '.join(kinds)}", got=repr(value), next_step=nearest(value, kinds))
        return _Part(kinds[value], {})
    if isinstance(value, str) and annotation is not None and len(classes) == 1 and "name" in _fields(classes[0]):
        return _Part(classes[0], {"name": value})
    if str in _members(annotation) and isinstance(value, int | float):
        return text
    return value


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    return typing.get_type_hints(of, include_extras=True)


def _annotation(of: Any, field: str) -> Any:
    return _hints(of)[field] if of is not None else None


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, `Annotated` looked through."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _kinds(annotation: Any) -> dict[Any, Any]:
    return {member.kind: member for member in _members(annotation) if _is_part(member) and hasattr(member, "kind")}


RULES = {
    "less_than": "must be less than {lt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "greater_than": "must be greater than {gt:.12g}",
    "greater_than_equal": "must be at least {ge:.12g}",
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
    "mapping_type": "must be a mapping",
    "callable_type": "must be a function",
    "model_attributes_type": "must be an object with a kind",
    "dataclass_type": "must be a {class_name}",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "kind must be one of {expected_tags}",
    "union_tag_not_found": "needs a kind",
}


def problems(error: ValidationError, at: str | None = None) -> str:
    """Every problem with the path of its field, `at` the path of the object itself (without it: the name of its class).

    A rule of our own that pydantic wrapped keeps its own words.
    """
    of_class = _classes().get(error.title)
    texts: dict[str, str] = {}
    found = error.errors(include_url=False)
    for problem in found:
        if problem["type"] == "dataclass_type" and any(len(other["loc"]) > 2 and other["loc"][0] == problem["loc"][0] for other in found):
            continue  # a member of a union that was not meant
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, UserError):
            texts.setdefault(str(inner), str(inner))
            continue
        path = _path(error.title if at is None else at, problem["loc"], of_class)
        texts.setdefault(path, f"{path}: {_rule(problem, inner, of_class)}")
    return "; ".join(texts.values())


def _rule(problem: Any, inner: object, of_class: type | None) -> str:
    if inner is not None:
        return str(inner)
    kind, received = problem["type"], problem["input"]
    if kind == "missing":
        return RULES[kind]
    shown = repr(received) if len(repr(received)) <= 80 else f"{type(received).__name__} {repr(received)[:60]}…"
    if kind == "unexpected_keyword_argument":
        owner = _classes().get(of_class.__name__) if of_class else None
        hint = nearest(str(problem["loc"][-1]), _fields(owner)) if owner and len(problem["loc"]) == 1 else ""
        return f"unknown field, got {shown}" + (f"; {hint}" if hint else "")
    text = RULES[kind].format(**problem.get("ctx", {})) if kind in RULES else problem["msg"].replace("Input should be", "must be")
    return f"{text}, got {shown}"


def _path(start: str, loc: tuple[int | str, ...], of_class: type | None) -> str:
    path = start
    tags = set(_classes()) | {value.kind for value in _classes().values() if isinstance(getattr(value, "kind", None), str)}
    for number, step in enumerate(loc):
        if isinstance(step, int) and number == 0 and of_class and step < len(_fields(of_class)):
            step = _fields(of_class)[step]  # an argument given by position
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in tags and "[" not in step:  # pydantic names the member of a union it tried; the user knows no such level
            path += f".{step}" if path else step
    return path


def _classes() -> dict[str, Any]:
    return {name: value for source in (distributions, parts) for name, value in vars(source).items() if _is_part(value)}


def _is_part(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "__pydantic_validator__")


def _fields(of_class: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(of_class)]
