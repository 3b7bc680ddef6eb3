"""Write the tested set of versions into `[tool.uv] constraint-dependencies` of pyproject.toml.

Only names, versions and markers are kept: a lock file would also record where each package was downloaded from.

    python scripts/lock.py             newest versions that fit, for every Python we support
    python scripts/lock.py --current   what uv.lock holds now
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?ms)^constraint-dependencies = \[\n.*?^\]\n")
NEEDED_BY_UV = ("README.md", "LICENSE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--current", action="store_true", help="take the versions of uv.lock instead of resolving anew")
    arguments = parser.parse_args()
    project = ROOT / "pyproject.toml"
    text = project.read_text()
    pins = resolve(BLOCK.sub("", text), reuse=arguments.current)
    project.write_text(with_constraints(text, pins))
    print(f"{len(pins)} constraints written to pyproject.toml; run the tests before you commit them")


def resolve(project: str, *, reuse: bool) -> list[str]:
    """Requirements with exact versions, in a folder of its own: the checkout's environment and lock file stay as they are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(project)
        for file in NEEDED_BY_UV:
            shutil.copy(ROOT / file, folder)
        if reuse:
            shutil.copy(ROOT / "uv.lock", folder)
        subprocess.run(["uv", "lock", "--quiet"], cwd=folder, check=True)
        wanted = ["--all-extras", "--all-groups", "--no-hashes", "--no-annotate", "--no-header", "--no-emit-project", "--frozen"]
        exported = subprocess.run(["uv", "export", "--quiet", *wanted], cwd=folder, check=True, capture_output=True, text=True).stdout
    pins = [line.strip() for line in exported.splitlines() if line.strip()]
    strange = [line for line in pins if not re.match(r"[A-Za-z0-9._-]+==", line) or "://" in line]
    if strange:
        raise SystemExit(f"not a plain pin: {strange[0]}")
    return pins


def with_constraints(project: str, pins: list[str]) -> str:
    lines = "".join('  "' + pin.replace('"', "'") + '",\n' for pin in pins)
    block = f"constraint-dependencies = [\n{lines}]\n"
    if BLOCK.search(project):
        return BLOCK.sub(lambda _: block, project, count=1)
    return project.replace("[tool.uv]\n", "[tool.uv]\n# The tested set, written by `task lock`.\n" + block, 1)


if __name__ == "__main__":
    main()
