"""The walk-through of `docs/guides/lifecycle.md`, command by command, as it is written there."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Workplace, workplace

pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(900)]
__all__ = ["workplace"]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "lifecycle.md"


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.S | re.M)


def test_the_walk_through(workplace: Workplace, wine_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_DATA_DIR", str(wine_folder))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    for block in blocks():
        if not block.startswith("toolkit "):
            subprocess.run(["bash", "-ec", block], cwd=workplace.folder, check=True)
            continue
        for line in block.splitlines():
            command, _, comment = line.partition("#")
            wanted = int(found[1]) if (found := re.search(r"exit code (\d+)", comment)) else 0
            arguments = _words(command)
            # Ray is started by the sweeps, and ends with their process.
            answer = (workplace.there if arguments[0] == "sweep" else workplace.here)(*arguments)
            assert answer.code == wanted, f"{line}\n{answer.out}\n{answer.err}"

    wine = workplace.here("models", "wine_quality", "--json").json
    assert {each["version"]: each["aliases"] for each in wine["versions"]} == {1: ["previous_champion"], 2: ["champion"], 3: ["challenger"]}
    own = workplace.here("models", "churn", "--json").json
    assert {each["version"]: each["aliases"] for each in own["versions"]} == {1: ["champion"], 2: ["previous_champion"]}
    workplace.all_gone()

    # What `--json` answers is what docs/cli.md says.
    fields = runpy.run_path(str(ROOT / "scripts" / "cli_docs.py"))["JSON_FIELDS"]
    for arguments in (["models"], ["models", "churn"], ["promote", "churn"], ["rollback", "churn"], ["cleanup"], ["explore", "./churn.py"]):
        answer = workplace.here(*arguments, "--json")
        assert set(answer.json) <= set(fields[arguments[0]]), arguments
    train = workplace.here("train", "./churn.py", "--json")
    assert list(train.json) == list(fields["train"]), train.err


def _words(command: str) -> list[str]:
    name, *arguments = shlex.split(command)
    assert name == "toolkit"
    return arguments
