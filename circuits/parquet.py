"""Tables on disk as parquet, through DuckDB: written whole, read and summed without holding all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd

MEMORY = "1GB"
"""What DuckDB may take before it goes to disk."""


@contextlib.contextmanager
def database(scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give an empty database in memory that spills into a folder, one thread: same in, same out."""
    settings = {"threads": 1, "memory_limit": MEMORY, "temp_directory": str(scratch / ".spill")}
    with duckdb.connect(config=settings) as connection:
        yield connection


def write_table(connection: duckdb.DuckDBPyConnection, table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet."""
    connection.register("written", table)
    try:
        write_query(connection, "SELECT * FROM written", path)
    finally:
        connection.unregister("written")


def write_query(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write what a query gives as parquet, row by row."""
    connection.execute(f"COPY ({query}) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd)")


def read_table(path: Path) -> pd.DataFrame:
    """Return the table in a parquet file, or in all that a pattern matches, in order of name.

    Raises ValueError for what is no sound parquet file.
    """
    with duckdb.connect(config={"threads": 1}) as connection:
        try:
            return connection.execute(f"SELECT * FROM read_parquet({quoted(path)})").df()
        except duckdb.Error as problem:
            reason = str(problem).strip().splitlines()[0]
            raise ValueError(f"{path}: no sound parquet file ({reason:.160}).") from None


def quoted(path: Path) -> str:
    """Return a path as SQL text."""
    return "'" + str(path).replace("'", "''") + "'"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `path` when all went well, and is gone if not."""
    draft = path.with_name(f".{path.name}.part")
    shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
