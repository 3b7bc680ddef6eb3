"""What import-linter cannot see: which engine file a library belongs to, imports by string, who reads the environment, what loads when.

The arrows between packages are in pyproject.toml (`task imports`).
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "toolkit").rglob("*.py"))

# Library -> how a file that may import it begins, from `toolkit/`.
HOMES = {
    "ray": "engines/ray_",
    "mlflow": "engines/mlflow_",
    "optuna": "engines/optuna_",
    "xgboost": "engines/xgboost_",
    "sklearn": "engines/sklearn_",
    "pyspark": "engines/spark_",
    "databricks": "engines/databricks_",
    "matplotlib": "reports/",
    "jinja2": "reports/",
    "typer": "cli/",
    "rich": "cli/",
}

# It travels alone into logged models, and so reads every kind itself.
PORTABLE = ("engines/portable_model.py", {"xgboost"})

VERBS = ("doctor", "new", "explore", "sweep", "train", "models", "promote", "rollback", "ingest", "score", "schedule", "cleanup")

HEAVY = {"ray", "mlflow", "optuna", "xgboost", "sklearn", "pyspark", "pandas", "matplotlib", "pyarrow"}


def name(path):
    return path.relative_to(ROOT / "toolkit").as_posix()


def imports(tree):
    """Every import of a file, those inside functions and those by string included, by full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "find_spec"):
                yield node.args[0].value


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_library_is_imported_only_in_files_that_carry_its_name(path):
    found = {imported.partition(".")[0] for imported in imports(ast.parse(path.read_text()))}
    astray = {library for library in found & HOMES.keys() if not name(path).startswith(HOMES[library])}
    assert astray - (PORTABLE[1] if name(path) == PORTABLE[0] else set()) == set()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nobody_imports_what_stands_outside(path):
    outside = {"experiments", "benchmarks", "infra_cdktf", "tests", "scripts"}
    for imported in imports(ast.parse(path.read_text())):
        assert imported.partition(".")[0] not in outside
        assert name(path).startswith("cli/") or name(path) == "__main__.py" or not imported.startswith("toolkit.cli")


@pytest.mark.parametrize("path", [path for path in FILES if name(path) != "settings.py"], ids=name)
def test_only_settings_reads_the_environment(path):
    """Others may set variables that a library reads, and pass a copy on to a child process; nobody else may decide by one."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "getenv":
            pytest.fail(f"{name(path)}:{node.lineno} reads the environment")
        if isinstance(node, ast.Attribute) and node.attr == "environ":
            parent = parents[node]
            reads = isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Load)
            reads |= isinstance(parent, ast.Attribute) and parent.attr in ("get", "items", "keys", "values")
            reads |= isinstance(parent, ast.Compare)
            assert not reads, f"{name(path)}:{node.lineno} reads the environment"


def test_the_portable_model_needs_nothing_of_the_toolkit():
    tree = ast.parse((ROOT / "toolkit" / PORTABLE[0]).read_text())
    assert not [each for each in imports(tree) if each.partition(".")[0] == "toolkit"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def loaded_by(code):
    """Top-level names of all modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nsys.stderr.write('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {module.partition(".")[0] for module in done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["--version"], ["sweep"]])
def test_help_loads_no_heavy_library(arguments):
    assert loaded_by(f"from toolkit.cli.app import run\nrun({arguments!r})") & HEAVY == set()


@pytest.mark.parametrize(
    "module",
    [
        "toolkit",
        *(f"toolkit.{verb}" for verb in VERBS if verb != "rollback"),
        "toolkit.score_udf",
        "toolkit.scores",
        "toolkit.settings",
        "toolkit.core.recipes",
    ],
)
def test_importing_a_verb_loads_no_heavy_library(module):
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_every_recipe_builds():
    from toolkit.core.recipes import load_experiment

    files = [path for path in (ROOT / "experiments").glob("*.py") if not path.stem.startswith("_")]
    assert files
    for path in files:
        assert load_experiment(path.stem, [path.parent]).name.replace("-", "_") == path.stem
