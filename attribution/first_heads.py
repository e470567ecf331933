"""Direct effects split by the first head that reads what a source wrote; the rest is the bypass.

The part of an effect that goes through head h of layer l first: what the source wrote reaches the
layer along the residual stream and skips alone, passes that head, and from there any way. A feature
of attention's output reads through the heads of its own layer, which count as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.effect_blocks import Block
from attribution.effect_sources import Columns
from attribution.effect_targets import Rows
from replacement.held import Cone, HeadPassage, Passage, Scratch, SkipPassage, Sublayer

BYPASS = "bypass"


@dataclass(frozen=True, eq=False)
class FirstHeads:
    """Splits blocks of effects by first heads."""

    sublayers: Sequence[Sublayer]
    columns: Columns
    """Without `seen_ahead`."""
    passages: Sequence[Passage | None]
    n_heads: int

    @property
    def names(self) -> list[str]:
        """The ways an effect can take: "L0.h0", …, the bypass last."""
        layers = len(self.sublayers) // 2
        heads = range(self.n_heads)
        return [*(f"L{layer}.h{head}" for layer in range(layers) for head in heads), BYPASS]

    def split(self, rows: Rows, block: Block) -> Float[Tensor, "way row column"]:
        """Return the effects of a block, way by way."""
        columns, images = self.columns, self._images(rows.stage)
        made = block.values.new_zeros(len(self.names), *block.values.shape)
        made[-1, :, -1] = rows.reads(rows.stage).constant
        gradient = block.values.new_zeros(len(rows), rows.n_pos, images[0].shape[-1])
        cone, scratch = [Cone(len(rows), rows.n_pos)], Scratch(gradient)
        later: dict[int, Tensor] = {}
        for stage in range(rows.stage, -1, -1):
            gradient = gradient + later.pop(stage, 0)
            if stage in rows.stages:
                seen = block.column[columns.part[block.column] < stage]
                vector, factor, *_ = rows.reads(stage)
                for part, way in enumerate(self._ways_of_seed(rows, vector.shape[1])):
                    read = vector[:, part] @ images[stage][seen].T
                    made[way, :, : len(seen)] += read * factor[:, part, columns.pos[seen]]
                gradient += rows.spread(stage)
            passage = self.passages[stage - 1] if stage else None
            if passage is None:
                continue
            reads_at = self.sublayers[stage - 1].reads_at
            if isinstance(passage, HeadPassage):
                seen = block.column[columns.part[block.column] < reads_at]
                mixed, values = passage.mixed(gradient), passage.values(images[reads_at][seen])
                ways = self._of_layer((stage - 1) // 2)
                for pos in range(rows.n_pos):
                    here = (columns.pos[seen] == pos).nonzero().flatten()
                    one = torch.einsum("bhd,shd->hbs", mixed[:, pos], values[here])
                    made[ways, :, : len(seen)].index_add_(2, here, one)
            carried = later.setdefault(reads_at, torch.zeros_like(gradient))
            passage.back(gradient.flatten(0, 1), cone, carried.flatten(0, 1), scratch)
        return made

    def _of_layer(self, layer: int) -> slice:
        return slice(layer * self.n_heads, (layer + 1) * self.n_heads)

    def _ways_of_seed(self, rows: Rows, n_parts: int) -> Sequence[int]:
        """The way each part of a seed is: a head of the reader's own, or no head."""
        if rows.through_heads:
            return range(len(self.names) - 1)[self._of_layer(rows.stage // 2)]
        return [-1] * n_parts

    def _images(self, last: int) -> list[Float[Tensor, "column d_model"]]:
        """What every column has become along the stream and skips, at every stage up to `last`."""
        columns = self.columns
        like = self.sublayers[0].error
        images: list[Tensor] = []
        current = like.new_zeros(len(columns.pos), like.shape[-1])
        for stage in range(last + 1):
            current = current.clone()
            passage = self.passages[stage - 1] if stage else None
            if isinstance(passage, SkipPassage):
                reads_at = self.sublayers[stage - 1].reads_at
                below = (columns.part < reads_at).nonzero().flatten()
                current[below] += passage.ahead(images[reads_at][below], columns.pos[below])
            for which, vectors in columns.written(stage):
                current[which] += vectors
            images.append(current)
        return images
