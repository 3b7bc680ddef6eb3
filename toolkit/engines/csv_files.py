"""CSV files: delimiter, decimal mark and encoding are found out from the file itself.

An encoding other than UTF-8 and a decimal mark that could be a thousands separator are guesses: they are told as warnings.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.core.column_kinds import has_whole_numbers
from toolkit.core.encoding import refuse_names, repeated
from toolkit.core.errors import DataError

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
SNIFFED_BYTES = 1 << 16
BLOCK_BYTES = 1 << 20
MOST_DIGITS = 15
"""Longer whole numbers are not exact as doubles, which they are where some are missing."""

_BINARY = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f]")
_COMMA = re.compile(r"[+-]?(\d*|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?(\d*|\d{1,3}(,\d{3})+)\.\d+([eE][+-]?\d+)?")
_GROUPED_BY_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_GROUPED_BY_POINT = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")

_logger = logging.getLogger("toolkit")


@dataclass(frozen=True)
class CsvFormat:
    """How a file is written.

    Attributes:
        encoding: `utf-8`, with a byte-order mark or without; `utf-16`, with one; or `cp1252`, whose letters are latin-1's.
        ambiguous: a number such as `1,234`, where all numbers with a comma look so: read as 1.234, and perhaps meant as 1234.
    """

    delimiter: str
    decimal: str
    encoding: str
    header: tuple[str, ...]
    ambiguous: str | None = None


def read_csv(path: Path) -> pd.DataFrame:
    """The whole file.

    Raises:
        DataError: it is empty, binary, not a table, or of an encoding that cannot be told.
    """
    how = csv_format(path)
    tell(path, how)
    return parse(path, how, path)


def tell(path: Path, how: CsvFormat) -> None:
    """Log what was guessed."""
    if how.encoding == "cp1252":
        _logger.warning("%s is not UTF-8: read as cp1252 (Western European); where letters look wrong, convert it to UTF-8", path.name)
    if how.ambiguous:
        number = how.ambiguous.replace(",", ".")
        _logger.warning(
            "%s: %s is read with a decimal comma, as %s; where it is a thousand, write the file without thousands separators",
            path.name,
            how.ambiguous,
            number,
        )


def parse(
    path: Path,
    how: CsvFormat,
    source: Path | io.StringIO,
    columns: Sequence[str] | Sequence[int] | None = None,
    *,
    as_text: bool = False,
) -> pd.DataFrame:
    """`source`, written as `how` says, as a frame; of a long file perhaps only some `columns`, by name or place. `path` is for messages.
    `as_text`: numbers as they are written.

    Raises:
        DataError: a row has too many cells, or quotes do not close.
    """
    refuse_names(repeated(how.header), f"data: column names must differ ({path.name}, delimiter {DELIMITERS[how.delimiter]})")
    if isinstance(source, io.StringIO):
        source.seek(0)
    try:
        return pd.read_csv(
            source,
            sep=how.delimiter,
            decimal=how.decimal,
            skipinitialspace=True,
            low_memory=False,
            encoding=how.encoding,
            usecols=None if columns is None else list(columns),
            dtype=str if as_text else None,
        )
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"data: {path.name} is not a table with delimiter {DELIMITERS[how.delimiter]}", got=str(error), next_step="correct the file"
        ) from error


def padded_columns(
    frame: pd.DataFrame, path: Path, how: CsvFormat, source: Path | io.StringIO, label: str | None
) -> tuple[pd.DataFrame, dict[str, int | None]]:
    """Columns of `frame`, which is `source` as `parse` reads it, that are written in digits with leading zeros: postal codes, not amounts.

    Args:
        label: stays as it is read.

    Returns:
        the frame, with those as text whose zeros can be put back; and how many digits each of these columns has, None where not all rows
        have as many.
    """
    may_be = [name for name in frame.columns if name != label and _is_number(frame[name]) and has_whole_numbers(frame[name])]
    if not may_be:
        return frame, {}
    raw = parse(path, how, source, [place for place, name in enumerate(frame.columns) if name in may_be], as_text=True)
    widths: dict[str, int | None] = {}
    texts = {}
    for name in may_be:
        present = raw[name].dropna().str.strip()
        if not present.str.match(r"0\d").any() or not present.str.fullmatch(r"\d+").all():
            continue
        lengths = present.str.len()
        if lengths.nunique() > 1 or lengths.iloc[0] > MOST_DIGITS:
            widths[name] = None
            continue
        widths[name], texts[name] = int(lengths.iloc[0]), raw[name].str.strip()
    return frame.assign(**texts), widths


def _is_number(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype)


def csv_format(path: Path) -> CsvFormat:
    """Delimiter, decimal mark and header from the file's beginning, the encoding from all of it.

    Raises:
        DataError: as `read_csv`.
    """
    encoding = _encoding(path)
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    complete = len(head) < SNIFFED_BYTES
    try:
        text = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)().decode(head, complete)
    except UnicodeDecodeError as error:
        raise _not_text(path, f"damaged {encoding}: {error.reason}") from error
    if _BINARY.search(text):
        raise _not_text(path, "binary content")
    tables = {mark: _rows(text, mark, complete) for mark in DELIMITERS}
    if not tables[","]:
        raise DataError("data: the file is empty", got=str(path), next_step="name a file with a header and rows")
    delimiter = max(tables, key=lambda mark: (_is_even(tables[mark]), len(tables[mark][0])))
    header, *rows = tables[delimiter]
    if len(header) < 2:
        raise DataError(
            f"data: columns must be divided by one of {', '.join(DELIMITERS.values())}",
            got=f"one column in {path.name}, whose first line is {text.splitlines()[0][:60]!r}{_other_mark(text)}",
            next_step="write it with one of these delimiters",
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(
                f"data: {path.name} has {len(header)} columns (delimiter found: {DELIMITERS[delimiter]})",
                got=f"{len(row)} in row {number}",
                next_step="correct the row, or quote its text",
            )
    decimal, ambiguous = (".", None) if delimiter == "," else _decimal_mark([cell for row in rows for cell in row])
    return CsvFormat(delimiter, decimal, encoding, tuple(header), ambiguous)


def sample_csv(path: Path, how: CsvFormat, num_blocks: int) -> io.StringIO:
    """The rows of the file's first MiB and of `num_blocks` - 1 others, evenly spaced: a table sorted by its label shows all of them.

    A block is left out where quoted line breaks make it unclear where its rows begin.

    Returns:
        a file with header, for `parse`.
    """
    size = path.stat().st_size
    step = (size - BLOCK_BYTES) // max(1, num_blocks - 1) // 2 * 2  # even, for UTF-16
    rows = [how.header]
    with path.open("rb") as file:
        mark = file.read(2)
        unit = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(mark, how.encoding)
        for number in range(num_blocks):
            file.seek(number * step)
            # What is left out is half a character at either end, which goes with its line.
            text = file.read(BLOCK_BYTES).decode(unit, errors="ignore").removeprefix("\ufeff")
            try:
                found = _rows(text[text.find("\n") + 1 :], how.delimiter, complete=False)
            except csv.Error:  # a quote that never closes
                continue
            if all(len(row) == len(how.header) for row in found):
                rows += map(tuple, found)
    out = io.StringIO()
    csv.writer(out, delimiter=how.delimiter).writerows(rows)
    return out


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(path):
            decoder.decode(block)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        _check_cp1252(path)
        return "cp1252"
    return "utf-8"


def _check_cp1252(path: Path) -> None:
    """Refuse what is UTF-8 but for a few bytes, which would turn all its other letters into two wrong ones each; and code pages whose
    letters are nothing in cp1252."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    num_alien = num_utf8 = num_lines = 0
    first = 0
    for block in _blocks(path):
        text = decoder.decode(block)
        alien = re.search("[\udc80-\udcff]", text)
        if alien and not first:
            first = num_lines + text.count("\n", 0, alien.start()) + 1
        num_lines += text.count("\n")
        num_aliens_here = len(re.findall("[\udc80-\udcff]", text))
        num_alien += num_aliens_here
        num_utf8 += len(re.findall("[^\0-\x7f]", text)) - num_aliens_here
        try:
            block.decode("cp1252")
        except UnicodeDecodeError as error:
            raise _not_text(path, f"the byte 0x{error.object[error.start]:02x}") from error
    if num_utf8 > num_alien:
        raise DataError(
            f"data: {path.name} must have one encoding",
            got=f"UTF-8, but for {max(num_alien, 1):,} bytes, first in line {first or num_lines + 1:,}",
            next_step="correct these letters, or write the file again in UTF-8",
        )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _not_text(path: Path, found: str) -> DataError:
    return DataError(
        "data: must be Parquet, or CSV in UTF-8 (or cp1252, or UTF-16 with its mark)", got=f"{path} with {found}", next_step="convert it"
    )


def _rows(text: str, delimiter: str, complete: bool) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    if not complete and len(rows) > 1:
        rows.pop()  # cut off in its middle
    return [row for row in rows if row]


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    return len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)


def _decimal_mark(cells: Sequence[str]) -> tuple[str, str | None]:
    """The mark and, where it is not certain, a number that shows why. `1,234` alone says nothing; `12,5` and `0,123` do."""
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    points = [cell for cell in cells if _POINT.fullmatch(cell)]
    has_comma = any(not _GROUPED_BY_COMMA.fullmatch(cell) for cell in commas)
    has_point = any(not _GROUPED_BY_POINT.fullmatch(cell) for cell in points)
    if has_comma:
        return (".", None) if has_point else (",", None)
    if commas and not points:
        return ",", commas[0]
    return ".", None


def _other_mark(text: str) -> str:
    """Names the delimiter of a file that uses one we do not take: a sign as often in every line."""
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    for mark in (":", "^", "~", "#", "/", " "):
        counts = {line.count(mark) for line in lines}
        if len(counts) == 1 and counts.pop() > 0:
            return f" (delimiter found: {mark!r})"
    return ""
