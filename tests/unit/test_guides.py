"""What the guides quote from the program is what the program has: errors, options, fields, variables, versions, files."""

import ast
import dataclasses
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer

from toolkit.cli.app import app
from toolkit.core.experiment import Cluster, Sweep

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CLUSTER = ROOT / "docs" / "guides" / "cluster.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name(path):
    return path.relative_to(ROOT).as_posix()


def templates():
    """Every string of the program as a pattern, with anything in the place of a value."""
    for path in (ROOT / "toolkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(part.value) if isinstance(part, ast.Constant) else "(.*)" for part in node.values]
                if len("".join(part for part in parts if part != "(.*)")) > 10:
                    yield "".join(parts)


@pytest.fixture(scope="module")
def is_said():
    pattern = re.compile("|".join(f"(?:{each})" for each in {*templates()}))
    return lambda text: pattern.fullmatch(text) is not None


def quoted_errors():
    return re.findall(r"`error: ([^`]+)`", CLUSTER.read_text())


@pytest.mark.parametrize("line", quoted_errors())
def test_a_quoted_error_is_what_the_program_says(line, is_said):
    """Rule and next step; the value between them is an example."""
    rule, _, rest = line.partition(", got ")
    steps = rest.split("; ")
    assert is_said(rule), rule
    assert any(is_said("; ".join(steps[i:])) for i in range(1, len(steps))), steps[1:]


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_fields_and_variables_exist(guide):
    text = guide.read_text()
    fields = {"sweep": {each.name for each in dataclasses.fields(Sweep)}, "cluster": {each.name for each in dataclasses.fields(Cluster)}}
    named = re.findall(r"(?<![\w.])(sweep|cluster)\.([a-z_]+)", re.sub(r"\w+\.(md|py)\b", "", text))
    assert named or guide != CLUSTER
    assert [each for each in named if each[1] not in fields[each[0]]] == []
    read = (ROOT / "toolkit" / "settings.py").read_text()
    assert [each for each in re.findall(r"\bTOOLKIT_[A-Z_]+", text) if f'"{each}"' not in read] == []


def test_commands_have_options_that_exist():
    verbs = {
        command: {option for each in verb.params for option in each.opts} for command, verb in typer.main.get_command(app).commands.items()
    }
    text = CLUSTER.read_text().replace("\\\n", "")
    commands = re.findall(r"^(?:uv run )?toolkit (\w+)(.*)$|`toolkit (\w+)([^`]*)`", text, re.M)
    assert len(commands) >= 5
    for one, its, other, others in commands:
        used = set(re.findall(r"(?<!\S)--[a-z-]+", its or others))
        assert used <= verbs[one or other], (one or other, used - verbs[one or other])


def test_the_init_script_is_bash_and_installs_what_was_tested():
    script = re.search(r"```bash\n(.*?)```", CLUSTER.read_text(), re.S)[1]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    wheel = f"ray_spark_toolkit-{PROJECT['project']['version']}-py3-none-any.whl"
    assert wheel in script and wheel in (ROOT / "docs" / "notebooks" / "databricks_sweep.py").read_text()
    tested = {each.partition("==")[0]: each.partition("==")[2] for each in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    assert re.findall(r'"(ray|optuna)(\[[\w,]+\])?==([\d.]+)"', script) == [
        ("ray", "[client,default,tune]", tested["ray"]),
        ("optuna", "", tested["optuna"]),
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in titles, target
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target
