"""From a zip of unknown origin to a JSON head and plain arrays, or an error that says why not.

Sizes are checked before anything is read, arrays are parsed without numpy's object loader, and no
name in the archive is ever used as a path.
"""

import io
import json
import struct
import tokenize
import zipfile
import zlib
from typing import Any, BinaryIO, NoReturn

import numpy as np

# A circuit of 100 000 nodes and 10 million edges takes 0.4 GB.
MAX_BYTES = 1 << 30
MAX_HEAD_BYTES = 1 << 26
_HEADER_BYTES = 4096
_TYPES = {"<i8", "<f8"}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OverflowError,
    MemoryError,
    OSError,  # offsets that lie outside the file
)


def read_archive(file: BinaryIO) -> dict[str, Any]:
    """The content, {"head": dict, "arrays": {"nodes.layer": array, …}}.

    Every array is as long as the head says its table is.

    Raises ValueError where the file is not such a zip.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive)
            head = _head(archive.read(entries.pop("head.json")))
            counts = _counts(head)
            arrays = {
                name.removesuffix(".npy"): _array(archive, entry, counts.get(name.split(".")[0], 0))
                for name, entry in entries.items()
            }
    except _BROKEN as problem:
        raise ValueError(
            f"It is not a zip archive, or a damaged one ({type(problem).__name__}: {problem}). If "
            "it was downloaded or copied, do that again; a circuit is written by circuit.save "
            "with the ending .circuit."
        ) from None
    return {"head": head, "arrays": arrays}


def array_bytes(array: np.ndarray) -> bytes:
    """The array as ``numpy.save`` writes it, format 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()) or "head.json" not in entries:
        _refuse("its list of members has doubles or lacks head.json")
    odd = sorted(name for name in entries if name != "head.json" and not name.endswith(".npy"))
    if odd:
        _refuse(f"it has members no circuit has ({', '.join(map(ascii, odd[:3]))})")
    size = sum(entry.file_size for entry in entries.values())
    if size > MAX_BYTES or entries["head.json"].file_size > MAX_HEAD_BYTES:
        _refuse(
            f"it would unpack to {size:,} bytes; at most {MAX_BYTES:,} are read, "
            f"{MAX_HEAD_BYTES:,} of them head"
        )
    return entries


def _head(data: bytes) -> dict[str, Any]:
    try:
        head = json.loads(data, parse_constant=lambda name: _refuse(f"its head holds {name}"))
    except (json.JSONDecodeError, UnicodeError, RecursionError) as problem:
        _refuse(f"head.json is not JSON ({problem})")
    if not isinstance(head, dict):
        _refuse(f"head.json is a {type(head).__name__}, not an object")
    return head


def _counts(head: dict[str, Any]) -> dict[str, int]:
    counts = head.get("counts")
    if not isinstance(counts, dict) or not all(
        type(count) is int and count >= 0 for count in counts.values()
    ):
        _refuse(f'"counts" in its head is {str(counts)[:80]}, not the number of rows of each table')
    return counts


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, count: int) -> np.ndarray:
    least = 8 * count
    if not least < entry.file_size <= least + _HEADER_BYTES:
        _refuse(
            f"{entry.filename!a} has {entry.file_size:,} bytes, which {count:,} rows do not take"
        )
    file = io.BytesIO(archive.read(entry))
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = (
            np.lib.format.read_array_header_1_0(file) if version == (1, 0) else (None, False, None)
        )
    except (ValueError, SyntaxError, RecursionError, tokenize.TokenError) as problem:
        _refuse(f"{entry.filename!a} is not an array ({problem})")
    data = file.read()
    if shape != (count,) or dtype is None or dtype.str not in _TYPES or len(data) != least:
        _refuse(
            f"{entry.filename!a} is an array of shape {shape} and type {dtype}, not ({count},) of "
            "<i8 or <f8"
        )
    return np.frombuffer(data, dtype=dtype)


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"It is damaged or not a circuit: {what}. Save the circuit again, or fetch the file again."
    )
