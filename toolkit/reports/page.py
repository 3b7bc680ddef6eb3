"""How every report becomes a page: its templates, its clock, and the text of a page that needs nothing but itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit.reports.cards import without_control_characters


def render(template: str, **values: Any) -> str:
    """The page. Charts in it are drawn before, inside `svg.chart_style()`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # every user string passes through it; only SVGs, which ElementTree escaped, are Markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return without_control_characters(environment.get_template(template).render(**values))


def utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
