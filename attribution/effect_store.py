"""Blocks of direct effects on disk: written batch by batch, found again, read when looked at.

A folder holds a manifest, which says what the blocks are of, and one file for every batch of rows.
All are written whole or not at all, so that a killed job leaves whole batches behind.
"""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from attribution.effect_blocks import Block
from attribution.effect_targets import Rows
from graphs.files.atomic import write_whole
from replacement.run import Run

MANIFEST = "effects.json"
SAYS = {
    "format": "another format",
    "run": "another run (model, layers, weights, prompt or dtype)",
    "targets": "other targets",
    "sources": "other sources",
    "via": "another via",
    "batch_rows": "batches of another size, which can change last digits",
}
"""Of every entry of the manifest: what another value of it means."""


class StoredBlocks(Sequence[Block]):
    """Blocks in the files of a folder; what is looked at is mapped into memory, not read whole."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: list[tuple[Path, int]] = []
        for path in files:
            with safe_open(path, "pt") as file:
                count = sum(name.startswith("row.") for name in file.keys())  # noqa: SIM118
            self._places += [(path, number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        """Return a block, or those of a slice."""
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        path, place = self._places[number]
        with safe_open(path, "pt") as file:
            row, column, values = (
                file.get_tensor(f"{name}.{place}") for name in ("row", "column", "values")
            )
            has_split = f"split.{place}" in file.keys()  # noqa: SIM118
            split = file.get_tensor(f"split.{place}") if has_split else None
        return Block(row, column.long(), values, split)


class EffectStore:
    """A folder of finished batches of one set of direct effects."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Raise ValueError for a folder that holds anything else than a part of these effects."""
        self.folder, self.rank, self.n_ranks = folder, 0, 1
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"direct_effects(resume={str(folder)!r}): is a file; give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*.part"):
            draft.unlink(missing_ok=True)
        if (folder / MANIFEST).exists():
            _refuse_other(folder, manifest)
        elif any(folder.iterdir()):
            raise ValueError(
                f"direct_effects(resume={str(folder)!r}): holds something else (there is no "
                f"{MANIFEST} in it). Give an empty folder, or one that is not there yet."
            )
        else:
            write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())

    @classmethod
    def temporary(cls, manifest: dict[str, Any]) -> "EffectStore":
        """Return a store in a folder of its own, which is not kept."""
        return cls(Path(tempfile.mkdtemp(prefix="effects-")), manifest)

    @classmethod
    def of_all_ranks(cls, folder: Path, manifest: dict[str, Any]) -> "EffectStore":
        """Return a store that the ranks of torchrun fill together, where there are any."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(folder, manifest)
        rank = dist.get_rank()
        if rank:
            dist.barrier()  # the first rank makes the folder, alone
        store = cls(folder, manifest)
        store.rank, store.n_ranks = rank, dist.get_world_size()
        if not rank:
            dist.barrier()
        dist.barrier()  # no rank writes while another still tidies
        return store

    def is_mine(self, batch: int) -> bool:
        """Return whether this rank computes a batch."""
        return batch % self.n_ranks == self.rank

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.n_ranks > 1:
            dist.barrier()

    def has(self, batch: int) -> bool:
        """Return whether a batch is finished; a damaged file is none."""
        try:
            with safe_open(self._file(batch), "pt"):
                return True
        except (FileNotFoundError, SafetensorError):
            return False

    def write(self, batch: int, blocks: Sequence[Block]) -> None:
        """Write the blocks of a batch."""
        tensors = {}
        for number, block in enumerate(blocks):
            tensors[f"row.{number}"] = block.row.cpu()
            tensors[f"column.{number}"] = block.column.int().cpu()
            tensors[f"values.{number}"] = block.values.cpu().contiguous()
            if block.split is not None:
                tensors[f"split.{number}"] = block.split.cpu().contiguous()
        write_whole(self._file(batch), save(tensors))

    def blocks(self, count: int, *, keep: bool) -> StoredBlocks:
        """Return the blocks of `count` batches; unless `keep`, the folder goes when they do."""
        found = StoredBlocks([self._file(batch) for batch in range(count)])
        if not keep:
            weakref.finalize(found, shutil.rmtree, self.folder, ignore_errors=True)
        return found

    def _file(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:06}.safetensors"


def manifest_of(
    run: Run,
    targets: tuple[pd.DataFrame, Sequence[Rows]],
    sources: pd.DataFrame,
    how: tuple[str | None, str],
    batch_rows: int,
) -> dict[str, Any]:
    """Return what says which effects these are, and in which batches: by content, not by name."""
    table, groups = targets
    reads = hashlib.sha256(_bytes(table))
    for rows in groups:
        for stage in rows.stages:
            seed = rows.reads(stage)
            reads.update(f"{stage} {rows.n_pos}".encode())
            for part in (seed.constant, seed.vector, seed.factor):
                reads.update(part.cpu().contiguous().numpy().data)
    about = [run.model.name, run.model.read_as, run.errors, str(run.next_logits.dtype)]
    held = hashlib.sha256(json.dumps([about, run.token_ids.tolist()]).encode())
    for layer in run.sublayers:
        held.update(layer.error.cpu().contiguous().numpy().data)
    for numbers in (run.residuals[-1], run.next_logits):
        held.update(numbers.cpu().contiguous().numpy().data)
    return {
        "format": "linear-circuits effects 1",
        "run": held.hexdigest(),
        "targets": reads.hexdigest(),
        "sources": hashlib.sha256(_bytes(sources)).hexdigest(),
        "via": how[0],
        "precision": how[1],
        "batch_rows": batch_rows,
    }


def _bytes(table: pd.DataFrame) -> bytes:
    return table.to_csv(float_format="%.17g").encode()


def _refuse_other(folder: Path, manifest: dict[str, Any]) -> None:
    try:
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        there = {}
    other = [says for name, says in SAYS.items() if there.get(name) != manifest[name]]
    if other:
        raise ValueError(
            f"direct_effects(resume={str(folder)!r}): the blocks in it are of {', '.join(other)}. "
            "Ask for the same with the same memory=, or give another folder."
        )
