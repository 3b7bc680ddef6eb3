"""The options that name a Spark cluster, the same for every verb that takes them."""

from __future__ import annotations

from typing import Annotated

import typer


def _key_and_value(settings: list[str] | None) -> list[str]:
    for setting in settings or []:
        if not setting.partition("=")[0].strip() or "=" not in setting:
            raise typer.BadParameter("must be KEY=VALUE")  # not repeated: a value may be a secret
    return settings or []


SparkMaster = Annotated[
    str | None, typer.Option(metavar="URL", help="spark://HOST:PORT, yarn or local-cluster[…]; default: what spark-defaults say.")
]
SparkConf = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", callback=_key_and_value, help="Setting of the Spark session that is started; repeatable."),
]


def conf_of(settings: list[str] | None) -> dict[str, str]:
    return {name.strip(): value for name, _, value in (setting.partition("=") for setting in settings or [])}
