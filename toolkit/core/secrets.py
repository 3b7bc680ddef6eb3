"""Addresses as they may be shown: in logs, reports, tags and errors."""

from __future__ import annotations

import re


def without_secrets(text: str) -> str:
    """`text` without the user and password of http addresses, the passwords of others, and queries (storage accounts sign there).

    Elsewhere than in http the user may be a container (`abfss://data@account`), which stays.
    """
    text = re.sub(r"(https?://)[^/@\s]*@", r"\1***@", text)
    text = re.sub(r"(?<=://)([^/@\s:]*):[^/@\s]*@", r"\1:***@", text)
    return re.sub(r"(?<=[^?\s]\?)\S*=\S*", "***", text)
