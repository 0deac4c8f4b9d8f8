"""Parquet files, as data sets are published: the cells of their tables, and the recordings that are in them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from .audio import AudioError, Part

_BATCH = 16  # rows that are read at a time


def open_parquet(path: Path) -> Any:
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


def read_cells(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows, as a dictionary of the cells of ``columns``. Cells that hold a file's bytes are a :class:`Part`.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow

    number = 0
    try:
        with open_parquet(path) as file:
            inside = {name: column for name in columns if (column := _column_of_bytes(file, name))}
            size = path.stat().st_size // max(1, file.metadata.num_rows)
            for batch in file.iter_batches(1024, columns=[name for name in columns if name not in inside]):
                for row in batch.to_pylist():
                    yield row | {name: Part(path, column, number, size) for name, column in inside.items()}
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged after row {number} ({_line(error)}): download it again") from None


def read_recordings(path: Path, column: str, rows: Sequence[int]) -> Iterator[bytes | AudioError]:
    """Yield the bytes in ``column`` of each of ``rows``, which ascend; one row group is in memory at a time."""
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
                            yield found or AudioError("there are no bytes in this row")
                        done, first = last, first + len(batch)
                        if done == len(rows) or rows[done] >= end:
                            break
                first = end
    except (OSError, pyarrow.ArrowException, UserError) as error:
        for _ in rows[done:]:
            yield AudioError(f"cannot be read ({_line(error)})", final=False)


def _column_of_bytes(file: Any, name: str) -> str:
    """Return the path of a column's bytes: ``name``, or ``name.bytes`` in {bytes, path}; or "", if it has none."""
    from pyarrow import types

    kind = file.schema_arrow.field(name).type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return name
    return f"{name}.bytes" if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
