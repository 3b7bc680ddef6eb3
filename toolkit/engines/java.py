"""The Java that Spark would use."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NEEDED = 17
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Java:
    """`problem` is empty where the Java will do."""

    found: str
    problem: str = ""


def find_java(java_home: Path | None) -> Java:
    """`JAVA_HOME`'s, else the one on the PATH, as Spark's own scripts choose it."""
    java = shutil.which(str(java_home / "bin" / "java")) if java_home else shutil.which("java")
    if java is None:
        return Java("", f"none in {java_home}" if java_home else "none on the PATH")
    try:
        text = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=_TIMEOUT_S).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        return Java("", f"{java}: {error}")
    match = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', text)
    if match is None:
        return Java("", f"{java}: version not understood")
    found = f"{match.group(1)}, {java}"
    return Java(found) if int(match.group(2)) >= NEEDED else Java(found, found)
