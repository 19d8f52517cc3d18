"""Tables of many images joined to one."""

import csv
import io
import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path


def join(parts: Sequence[Path], target: Path) -> list[int]:
    """Writes the rows of CSV files under one header with the columns of all; returns the number of each.

    Columns that only some images have, such as intensities of further channels, are empty for the others. There may be
    100,000 parts: one at a time is in memory.
    """
    of_header = {header: next(csv.reader([header.decode()])) for header in dict.fromkeys(map(_header, parts))}
    columns = reduce(_merged, of_header.values())
    n_rows: list[int] = []
    with target.open("wb") as file:
        file.write(_text([columns]))
        for part in parts:
            header, _, rows = part.read_bytes().partition(b"\r\n")
            if of_header[header] != columns:
                read = csv.DictReader(io.StringIO(rows.decode(), newline=""), of_header[header], restval="")
                rows = _text([[row.get(name, "") for name in columns] for row in read])
            n_rows.append(rows.count(b"\r\n"))
            file.write(rows)
        file.flush()
        os.fsync(file.fileno())
    return n_rows


def _header(part: Path) -> bytes:
    with part.open("rb") as file:
        return file.readline().removesuffix(b"\r\n")


def _merged(columns: list[str], header: list[str]) -> list[str]:
    """The columns, and those that only the header has, each before the one that it is followed by there."""
    merged = list(columns)
    for name, following in reversed(list(zip(header, [*header[1:], None], strict=True))):
        if name not in merged:
            merged.insert(len(merged) if following is None else merged.index(following), name)
    return merged


def _text(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
