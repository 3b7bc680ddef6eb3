"""Experiments by name.

An experiment is a function `experiment() -> Experiment` in the user's own code: whatever goes wrong there becomes one line that says
where.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pydantic import ValidationError

from toolkit.core.errors import ExperimentError, UserError, nearest
from toolkit.core.experiment import Experiment
from toolkit.core.overrides import override, problems

__all__ = ["load_experiment", "override", "recipe_folders", "source_of", "user_modules"]

FILE_MODULE = "toolkit_experiment_"
"""Starts the module name of an experiment loaded from a file: it cannot collide with what the file itself imports."""


def recipe_folders() -> tuple[Path, ...]:
    """Where names are looked up: the user's `experiments/`, then ours (in the wheel, or of the source checkout)."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_recipes"
    return Path.cwd() / "experiments", packaged if packaged.is_dir() else package.parent / "experiments"


def load_experiment(name: str, search_in: Sequence[Path] | None = None) -> Experiment:
    """The experiment called `name`: `wine-quality` (a file of `search_in`), `package.module:function`, `path/to/file.py[:function]`.

    Raises:
        ExperimentError: there is none, or the user's code fails; the message holds the user's file and line.
    """
    source, _, function_name = name.partition(":")
    function_name = function_name or "experiment"
    path = Path(source).expanduser()
    if not source.endswith(".py") and ("/" in source or path.suffix) and path.exists():
        raise ExperimentError(
            "an experiment is a file of Python, or a name",
            got=source,
            next_step=f"write one with toolkit new NAME --data {source} --label COLUMN",
        )
    if source.endswith(".py") or "/" in source:
        if not path.is_file():
            raise ExperimentError("an experiment's file must exist", got=source, next_step="give the path from the working directory")
        return _call(_import_file(path.resolve()), function_name)
    folders = recipe_folders() if search_in is None else tuple(search_in)
    for folder in folders:
        path = folder / f"{source.replace('-', '_')}.py"
        if path.is_file() and not source.startswith("_"):
            return _call(_import_file(path.resolve()), function_name)
    if ":" in name:
        return _call(_import_module(source), function_name)
    known = sorted({path.stem.replace("_", "-") for folder in folders for path in folder.glob("*.py") if not path.stem.startswith("_")})
    hint = nearest(source, known)
    raise ExperimentError(
        "unknown experiment",
        got=repr(name),
        next_step=f"{hint} known: {', '.join(known)}"
        if hint.endswith("?")
        else f"{hint}; or give path/to/file.py or package.module:function",
    )


def source_of(name: str) -> str:
    """An experiment's name as another working directory finds it too: files by their absolute path."""
    source, mark, function_name = name.partition(":")
    if source.endswith(".py") or "/" in source:
        return f"{Path(source).expanduser().resolve()}{mark}{function_name}"
    return name


def user_modules(experiment: Experiment) -> tuple[ModuleType, ...]:
    """The user's own modules behind an experiment, as loaded now: what worker processes cannot import and must get by value.

    Those are the modules of its functions and all that was imported from the same folders, except what is installed.
    """
    named = {getattr(function, "__module__", None) for function in _functions(experiment)}
    homes = [sys.modules[name] for name in named if name in sys.modules and name != "__main__"]
    folders = {_home(module) for module in homes if _is_own(module)} - {None}
    found: dict[str, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        home = _home(module) if name.startswith(FILE_MODULE) or _is_own(module) else None
        if home and name != "__main__" and any(home.is_relative_to(folder) for folder in folders if folder):
            found[name] = module
    found.update({module.__name__: module for module in homes if module.__name__.startswith(FILE_MODULE)})
    return tuple(found.values())


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _functions(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _functions(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _functions(item)
    elif callable(value):
        yield value


def _home(module: ModuleType) -> Path | None:
    """The folder that holds the module, or the top package it is part of."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    depth = module.__name__.count(".") + (1 if Path(file).stem == "__init__" else 0)
    parents = Path(file).resolve().parents
    return parents[min(depth, len(parents) - 1)]


def _is_own(module: ModuleType) -> bool:
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if not file or name == "__main__" or name.partition(".")[0] == "toolkit":
        return False
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
    return name.startswith(FILE_MODULE) or not installed


class _NoBytecode(SourceFileLoader):
    """Leaves no `__pycache__` beside a user's file, and reads none: after an edit in the same second that keeps the length, it would be
    stale."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path) -> ModuleType:
    name = FILE_MODULE + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path, loader=_NoBytecode(name, str(path)))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _user_error(error, "an experiment's file must import without error", path) from error
    return module


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ExperimentError(
                "the experiment's module cannot be found", got=repr(name), next_step="start where its package lies, or install it"
            ) from error
        raise _user_error(error, "an experiment's module must import without error", None) from error
    except (Exception, SystemExit) as error:
        raise _user_error(error, "an experiment's module must import without error", None) from error


def _make_importable(folder: Path) -> None:
    # Last on the path: a user's helper must not hide an installed library, such as a `ray.py` beside the experiment.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _call(module: ModuleType, name: str) -> Experiment:
    file = Path(module.__file__ or "")
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise ExperimentError(f"{_shown(file)} needs a function {name}() -> Experiment", got="none", next_step=nearest(name, own))
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise _user_error(error, f"{name}() must return an Experiment", file, function) from error
    if not isinstance(result, Experiment):
        raise ExperimentError(f"{name}() must return an Experiment", got=f"{type(result).__name__} from {_location(function, file)}")
    return result


def _user_error(error: BaseException, rule: str, file: Path | None, function: Any = None) -> UserError:
    """What went wrong in the user's code, with the innermost line of it that took part."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    own = [frame for frame in frames if _is_users(Path(frame[0]), file)]
    where = f"{_shown(Path(own[-1][0]))}, line {own[-1][1]}" if own else _location(function, file)
    if isinstance(error, ValidationError):
        return ExperimentError(f"{problems(error)} ({where})")
    if isinstance(error, UserError):
        return ExperimentError(f"{error} ({where})")
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    advice = f"install {missing} in this environment, or put it beside the file" if missing else "mend that line"
    return ExperimentError(rule, got=f"{type(error).__name__}: {text} ({where})", next_step=advice)


def _is_users(path: Path, file: Path | None) -> bool:
    if file is not None and path == file:
        return True
    outside = {"site-packages", "dist-packages", "<frozen importlib._bootstrap>"} & set(path.parts)
    ours = Path(__file__).resolve().parents[1]
    return path.is_file() and not outside and not path.is_relative_to(ours) and not path.is_relative_to(sysconfig.get_path("stdlib"))


def _location(function: Any, file: Path | None) -> str:
    code = getattr(function, "__code__", None)
    shown = _shown(file) if file else "the module"
    return f"{shown}, line {code.co_firstlineno}" if code else shown


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
