"""Layers that lie in a repository of the Hugging Face hub: what there is, how big, and fetching it.

The files come into the cache of `huggingface_hub`, which also serves them again without a network
(`HF_HUB_OFFLINE=1`, or the hub out of reach). Nothing is fetched that does not fit on the disk.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects

LAYER_FILES = ("*.safetensors", "*.npz", "*.pt", "*.json", "*.yaml")
NOT_LAYERS = ["features/*", "*/features/*", "*_log_feature_sparsity.pt"]
"""What lies beside layers: examples of every feature (often the most of it), statistics."""
SCHEME = "hf://"
NAME = r"[A-Za-z0-9][\w.-]*"
HTTPError = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage] (httpx's, or httpx2's)
REPOSITORY = re.compile(rf"({NAME}/{NAME})(?:/(.+))?")


@dataclass(frozen=True)
class Source:
    """A repository of the hub, or one folder or file in it."""

    repo: str
    path: str = ""
    """Of the folder or file in the repository; empty: all of it."""
    revision: str | None = None
    """A branch, tag or commit; None: the newest."""
    files: tuple[str, ...] = LAYER_FILES

    def __str__(self) -> str:
        where = "/".join(part for part in (self.repo, self.path) if part)
        return where if self.revision is None else f"{where}@{self.revision}"

    @property
    def patterns(self) -> list[str]:
        """Which files of the repository are meant."""
        if not self.path:
            return list(self.files)
        return [self.path, *(f"{self.path}/{pattern}" for pattern in self.files)]


@dataclass(frozen=True)
class Listing:
    """What a source holds at one commit."""

    source: Source
    commit: str
    sizes: dict[str, int]
    """Bytes of every file."""
    missing: tuple[str, ...]
    """The files that are not in the cache."""

    @property
    def to_download(self) -> int:
        """Bytes."""
        return sum(self.sizes[name] for name in self.missing)


def source_of(text: str) -> Source | None:
    """Return what a name of the hub means, None for what is none.

    Names: "user/repo", "user/repo/sub/folder@revision", "hf://user/repo/path?revision=…".

    >>> source_of("user/repo/sub/folder@v2")
    Source(repo='user/repo', path='sub/folder', revision='v2', ...)
    >>> source_of("./folder") is None
    True
    """
    if text.startswith(SCHEME):
        name, _, revision = text.removeprefix(SCHEME).partition("?revision=")
    else:
        name, _, revision = text.partition("@")
    found = REPOSITORY.fullmatch(name.rstrip("/"))
    if found is None or {"", ".", ".."} & set(name.rstrip("/").split("/")):
        return None
    return Source(found[1], found[2] or "", revision or None)


def listing(source: Source) -> Listing | None:
    """Return what the hub has of a source and what of it is missing here, None out of its reach.

    Raises FileNotFoundError for a repository, revision or path that is not there, PermissionError
    for one that is not open to this account.
    """
    try:
        with _explained(source):
            info = huggingface_hub.HfApi().model_info(
                source.repo, revision=source.revision, files_metadata=True
            )
    except ConnectionError:
        return None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = filter_repo_objects(sizes, allow_patterns=source.patterns, ignore_patterns=NOT_LAYERS)
    held = {name: sizes[name] for name in wanted}
    if not held:
        found = ", ".join(sorted({name.split("/")[0] for name in sizes})[:8]) or "nothing"
        raise FileNotFoundError(
            f"{source}: no files of layers there. The repository {source.repo} holds: {found}. "
            "Give the folder in it, user/repo/sub/folder."
        )
    commit = info.sha or ""
    missing = tuple(name for name in held if cached(source.repo, name, commit) is None)
    return Listing(source, commit, held, missing)


def header(there: Listing, name: str) -> dict[str, int]:
    """Return how many numbers of each dtype a `.safetensors` file on the hub holds.

    Only its header is fetched. Raises what `fetch` does.
    """
    with _explained(there.source):
        found = huggingface_hub.HfApi().parse_safetensors_file_metadata(
            there.source.repo, name, revision=there.commit
        )
    return {str(dtype): count for dtype, count in found.parameter_count.items()}


def cached(repo: str, name: str, revision: str | None) -> Path | None:
    """Return where a file of a repository lies on this machine, None where it does not."""
    found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch(source: Source) -> Path:
    """Return the folder (or file) of a source on this machine, downloaded unless it is there.

    Raises what `listing` does, OSError for a disk that is too full and for a download that broke
    off, FileNotFoundError where the hub is out of reach and the cache does not hold it.
    """
    found = listing(source)
    revision, here = source.revision, found is None
    if found is not None:
        check_disk(str(source), found.to_download)
        revision, here = (revision, False) if found.missing else (found.commit, True)
    with _explained(source):
        root = huggingface_hub.snapshot_download(
            source.repo,
            revision=revision,
            allow_patterns=source.patterns,
            ignore_patterns=NOT_LAYERS,
            local_files_only=here,
        )
    place = Path(root) / source.path
    if not place.exists():
        raise _not_here(source)
    return place


def fetch_files(sources: Sequence[Source]) -> list[Path]:
    """Return where these files are on this machine, those of one repository fetched together."""
    folders = {group: fetch(group) for group in grouped(sources)}
    return [
        folder / source.path
        for source in sources
        for group, folder in folders.items()
        if (group.repo, group.revision) == (source.repo, source.revision)
    ]


def grouped(files: Sequence[Source]) -> list[Source]:
    """Return the files as one source a repository and revision."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for file in files:
        found.setdefault((file.repo, file.revision), []).append(file.path)
    return [
        Source(repo, revision=revision, files=tuple(paths))
        for (repo, revision), paths in found.items()
    ]


def check_disk(what: str, needed: int) -> None:
    """Raise OSError where a download does not fit on the disk of the cache."""
    cache = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{what}: {needed / 1e9:.2f} GB are to be downloaded to {cache}, {free / 1e9:.2f} GB "
            "are free there. Make room, or set HF_HUB_CACHE to a folder on a larger disk."
        )


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    """What `huggingface_hub` raises, in one sentence each."""
    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"{source}: {source.repo} is open only to those who accepted its conditions. Accept "
            "them on its page of the hub, then log in: hf auth login."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{source}: the hub has no repository {source.repo}, or it is private. Check the name "
            "(circuits list shows those known), or log in: hf auth login."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"{source}: {source.repo} has no revision {source.revision!r}. Give a branch, a tag or "
            "a commit of it, or leave @… out for the newest."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise _not_here(source) from None
    except errors.HfHubHTTPError as problem:
        code = problem.response.status_code
        if code in (401, 403):
            raise PermissionError(
                f"{source}: the hub does not give {source.repo} to this account (HTTP {code}). Log "
                "in with one that may read it: hf auth login."
            ) from None
        raise ConnectionError(f"{source}: the hub answered HTTP {code}. Try again later.") from None
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(f"{source}: not looked up, for HF_HUB_OFFLINE is set.") from None
    except (HTTPError, OSError, errors.SafetensorsParsingError) as problem:
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ConnectionError(
            f"{source}: the download broke off ({reason[0]:.200}). Start it again: it goes on from "
            "what has come."
        ) from None


def _not_here(source: Source) -> FileNotFoundError:
    why = "the hub is out of reach"
    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    return FileNotFoundError(
        f"{source}: not in the cache ({constants.HF_HUB_CACHE}), or not all of it, and {why}. "
        "Load it once with a network."
    )
