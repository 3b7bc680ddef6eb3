"""What git says of the working directory. A machine without git, or a directory outside a repository, is no error."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitState:
    """`branch` is None outside a repository and on a detached HEAD; `commit` (40 hex digits) is None before the first one."""

    branch: str | None
    commit: str | None


def git_state(directory: Path | None = None, timeout_s: float = 2.0) -> GitState:
    """Branch and commit of `directory` (default: the working directory), each None where git does not answer within `timeout_s`."""
    return GitState(
        branch=_git(["symbolic-ref", "--quiet", "--short", "HEAD"], directory, timeout_s),
        commit=_git(["rev-parse", "--quiet", "--verify", "HEAD"], directory, timeout_s),
    )


def _git(arguments: list[str], directory: Path | None, timeout_s: float) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a repository on a disk that hangs
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
