"""How the toolkit's tags are kept in a registry that has its own ideas of keys and lengths.

A value that is too long becomes parts, in tags of their own that carry its digest, and a head that names them. Parts are written first and
the head last, so that a writer who dies in between has changed nothing. Unity Catalog allows no dots in keys.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.core.errors import RegistryError

OURS = "toolkit."
HEAD = "toolkit-parts"
PART = re.compile(r"(.+)\.part\d+\.[0-9a-f]{8}")
DOT = "__"
PART_OVERHEAD_BYTES = 2


@dataclass(frozen=True)
class TagRules:
    """What a registry takes.

    Attributes:
        max_bytes: of a value.
        has_dots: keys may have dots. Without: ours are written with two underscores, and never have two of their own.
        max_audit_records: how many of a model's audit records stay at the model itself; None: all. (Those of a version stay there.)
    """

    max_bytes: int
    has_dots: bool
    max_audit_records: int | None = None

    def key(self, key: str) -> str:
        """As it is stored."""
        assert self.has_dots or DOT not in key
        return key if self.has_dots else key.replace(".", DOT)

    def encode(self, key: str, value: str) -> dict[str, str]:
        """The tags to write, in this order."""
        raw = value.encode()
        if len(raw) <= self.max_bytes and not value.startswith(HEAD):
            return {self.key(key): value}
        digest = hashlib.sha256(raw).hexdigest()[:8]
        parts = _pieces(value, self.max_bytes - PART_OVERHEAD_BYTES)
        # In brackets: Unity Catalog takes no spaces at the ends.
        written = {self.key(f"{key}.part{number}.{digest}"): f"[{part}]" for number, part in enumerate(parts)}
        return {**written, self.key(key): f"{HEAD}:{digest}:{len(parts)}"}

    def decode(self, stored: Mapping[str, str]) -> dict[str, str]:
        """The tags as they were meant, without parts.

        Raises:
            RegistryError: parts are missing.
        """
        named = {self._name(key): value for key, value in stored.items()}
        return {key: _whole(key, value, named) for key, value in named.items() if not (key.startswith(OURS) and PART.fullmatch(key))}

    def parts(self, key: str, stored: Mapping[str, str]) -> list[str]:
        """Stored keys of all parts that were ever written for `key`."""
        return [each for each in stored if (match := PART.fullmatch(self._name(each))) and match[1] == key]

    def orphans(self, prefix: str, stored: Mapping[str, str]) -> list[str]:
        """Stored keys of parts whose head, of a key that begins with `prefix`, is not there: its writer died, or its remover."""
        names = {self._name(each) for each in stored}
        found = [(each, PART.fullmatch(self._name(each))) for each in stored]
        return [each for each, match in found if match and match[1].startswith(prefix) and match[1] not in names]

    def _name(self, stored: str) -> str:
        return stored if self.has_dots or not stored.startswith(self.key(OURS)) else stored.replace(DOT, ".")


ORDINARY = TagRules(max_bytes=5000, has_dots=True)
# Fifty tags in all, of which this leaves room for what else there is.
UNITY_CATALOG = TagRules(max_bytes=1000, has_dots=False, max_audit_records=15)


def _pieces(value: str, max_bytes: int) -> list[str]:
    pieces, room = [""], max_bytes
    for character in value:
        size = len(character.encode())
        if size > room:
            pieces.append("")
            room = max_bytes
        pieces[-1] += character
        room -= size
    return pieces


def _whole(key: str, value: str, named: Mapping[str, str]) -> str:
    if not (key.startswith(OURS) and value.startswith(f"{HEAD}:")):
        return value
    _, digest, count = value.split(":")
    try:
        whole = "".join(named[f"{key}.part{number}.{digest}"][1:-1] for number in range(int(count)))
    except (KeyError, ValueError):
        whole = ""
    if hashlib.sha256(whole.encode()).hexdigest()[:8] != digest:
        raise RegistryError(f"tag {key}: all of its parts", got=f"not those of {digest}", next_step="look at it, and remove it by hand")
    return whole
