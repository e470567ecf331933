"""Write a whole file or none."""

import os
import secrets
from pathlib import Path


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """The path, once the bytes are on disk there.

    On any failure what was there before is still there, and nothing else. Written beside the
    destination under another name, flushed to the disk, then renamed over it.

    Raises ValueError where the path is a folder, FileNotFoundError where the folder to write into
    does not exist.
    """
    final = Path(os.path.realpath(path))  # a link stays a link, and what it points to is replaced
    if final.is_dir():
        raise ValueError(
            f"{path} is a folder. Give the name of a file to write, for example "
            f"{final / 'my.circuit'}."
        )
    if not final.parent.is_dir():
        raise FileNotFoundError(
            f"{path}: there is no folder {final.parent} to write into. Make it first: mkdir -p."
        )
    draft = final.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    return final
