"""How big a set of layers is, from the headers of its files: before a weight is read or fetched."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from replacement.checkpoints.files import unreadable
from replacement.checkpoints.hub import (
    NOT_LAYERS,
    SCHEME,
    Listing,
    Source,
    cached,
    fetch,
    grouped,
    header,
    listing,
    source_of,
)

WEIGHTS = (".safetensors", ".npz", ".pt")
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
LIST = "config.yaml"
"""circuit-tracer's settings, which may list files that lie elsewhere."""


@dataclass(frozen=True)
class Size:
    """What a set takes."""

    numbers: int
    """Floating-point numbers in its files."""
    to_download: int
    """Bytes."""

    def __add__(self, other: "Size") -> "Size":
        return Size(self.numbers + other.numbers, self.to_download + other.to_download)


def size_of(place: Path | Source) -> Size:
    """Return the size of a folder or file of layers, or of a source on the hub.

    Exact for `.safetensors`, and for `.npz` on this machine; other files count as numbers of four
    bytes. Of the hub only headers and config.yaml are fetched. Raises what `hub.fetch` does.
    """
    if isinstance(place, Path):
        return _of_folder(place)
    there = listing(place)
    return _of_folder(fetch(place)) if there is None else _of_listing(there)


def numbers_in(file: Path) -> int:
    """Return how many floating-point numbers a file of weights holds, from its header.

    Raises ValueError for a file without a sound one.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="np") as opened:
                tensors = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
            return sum(math.prod(one.get_shape()) for one in tensors if one.get_dtype() in FLOATS)
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return sum(_numbers_in_array(archive, name) for name in archive.namelist())
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as found:
        reason = str(found).splitlines()[0] if str(found) else type(found).__name__
        raise unreadable(file, reason) from None
    return file.stat().st_size // 4


def _numbers_in_array(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(name) as member:
        old = np.lib.format.read_magic(member) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return math.prod(shape) if dtype.kind == "f" else 0


def _of_folder(folder: Path) -> Size:
    if folder.is_file():
        return Size(numbers_in(folder), 0)
    listed = _listed(folder / LIST)
    files = [folder / entry for entry in listed if "://" not in entry]
    if not listed:
        files = [file for file in folder.rglob("*") if file.suffix in WEIGHTS]
        files = [file for file in files if not any(map(file.match, NOT_LAYERS))]
    total = Size(sum(numbers_in(file) for file in files if file.is_file()), 0)
    return sum(map(size_of, _remote(listed)), total)


def _of_listing(there: Listing) -> Size:
    """Files in the cache by their own headers, those of the hub by what it sends of them."""
    source = there.source
    named = f"{source.path}/{LIST}".removeprefix("/")
    listed = []
    if named in there.sizes:
        held = fetch(Source(source.repo, revision=source.revision, files=(named,)))
        listed = _listed(held / named)
    numbers = 0
    for name in there.sizes:
        if Path(name).suffix in WEIGHTS:
            here = cached(source.repo, name, there.commit)
            numbers += _numbers_there(there, name) if here is None else numbers_in(here)
    return sum(map(size_of, _remote(listed)), Size(numbers, there.to_download))


def _numbers_there(there: Listing, name: str) -> int:
    """From the header of a file on the hub; from its size where it has none to be asked for."""
    if not name.endswith(".safetensors"):
        return there.sizes[name] // 4
    return sum(count for dtype, count in header(there, name).items() if dtype in FLOATS)


def _listed(path: Path) -> list[str]:
    """The files that circuit-tracer's settings list; whoever reads the set checks the settings."""
    if not path.is_file():
        return []
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return []
    listed = config.get("transcoders") if isinstance(config, dict) else None
    return [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def _remote(listed: list[str]) -> list[Source]:
    sources = [source_of(entry) for entry in listed if entry.startswith(SCHEME)]
    return grouped([source for source in sources if source is not None])
