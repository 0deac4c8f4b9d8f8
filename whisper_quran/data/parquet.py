"""Parquet files, as data sets are published: the cells of their tables, and the recordings that are in them."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from .audio import AudioError, Part

_BATCH = 16  # rows that are read at a time


def open_parquet(path: str | os.PathLike[str]) -> Any:
    """Open a file; it is a pyarrow ParquetFile, and a context.

    Raises:
        UserError: pyarrow is not installed, or it is no whole parquet file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} is read by pyarrow, which is not installed ({error}): pip install pyarrow") from None
    try:
        return parquet.ParquetFile(path, buffer_size=1 << 20)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is no whole parquet file ({_line(error)}): download it again") from None


def read_cells(path: str | os.PathLike[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows, as a dictionary of the cells of ``columns``. Cells that hold a file's bytes are a :class:`Part`.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow

    with open_parquet(path) as file:
        inside = {name: column for name in columns if (column := _column_of_bytes(file, name))}
        number = 0
        try:
            for group in range(file.num_row_groups):
                chunks = file.metadata.row_group(group)
                held = {name: column for name, column in inside.items() if _holds(chunks, column)}
                for batch in file.iter_batches(1024, [group], [name for name in columns if name not in held]):
                    for row in batch.to_pylist():
                        parts = {name: Part(Path(path), column, number) for name, column in held.items()}
                        yield row | parts
                        number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is damaged after row {number} ({_line(error)}): download it again") from None


def read_recordings(path: str | os.PathLike[str], column: str, rows: Sequence[int]) -> Iterator[bytes | AudioError]:
    """Yield the bytes in ``column`` of each of ``rows``, which ascend; a few rows are in memory at a time."""
    import pyarrow

    done = first = 0
    try:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if done < len(rows) and rows[done] < end:
                    for batch in file.iter_batches(_BATCH, [group], [column], use_threads=False):
                        last = bisect_left(rows, first + len(batch))
                        for row in rows[done:last]:
                            cell = batch.column(0)[row - first].as_py()
                            found = cell.get("bytes") if isinstance(cell, dict) else cell
                            yield found or AudioError("there is no audio in this row")
                        done, first = last, first + len(batch)
                        if done == len(rows) or rows[done] >= end:
                            break
                first = end
    except (OSError, pyarrow.ArrowException, UserError) as error:
        for _ in rows[done:]:
            yield AudioError(f"cannot be read ({_line(error)})", final=False)


def mean_size(path: str | os.PathLike[str], column: str) -> int:
    """Return the mean number of bytes in the rows of ``column``."""
    with open_parquet(path) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
        return size // max(1, file.metadata.num_rows)


def _column_of_bytes(file: Any, name: str) -> str:
    """Return the path of a column's bytes: ``name``, or ``name.bytes`` in {bytes, path}; or "", if it has none."""
    from pyarrow import types

    kind = file.schema_arrow.field(name).type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return name
    return f"{name}.bytes" if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else ""


def _holds(group: Any, column: str) -> bool:
    """Return True if there may be bytes in this column of a row group: where there are none, the paths are of files."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
    return any(each is None or each.null_count is None or each.null_count < group.num_rows for each in statistics)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
