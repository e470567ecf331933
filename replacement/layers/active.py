"""The features of one sublayer that are active in one run, position by position.

Stored as compressed rows (one row a position), so that only weight rows of active features are
ever read: the two products that attribution needs run on PyTorch's own sparse kernels.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.precision import Narrow


@dataclass(frozen=True, eq=False)
class Active:
    """Active features of one sublayer, sorted by position, then by index."""

    index: Int[Tensor, " node"]
    """Which feature."""
    offsets: Int[Tensor, " pos_plus_one"]
    """Features of position p are the entries `offsets[p]:offsets[p + 1]`."""
    activation: Float[Tensor, " node"]
    """`gate * (read · y + read_bias)` of the run."""
    gate: Float[Tensor, " node"]
    """Held: 1 for a selected feature, act(x)/x for a smooth activation."""
    n_features: int
    dense: bool
    """True where every feature is active at every position (smooth neurons)."""

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def n_pos(self) -> int:
        return self.offsets.shape[0] - 1

    @cached_property
    def pos(self) -> Int[Tensor, " node"]:
        """The position of every entry."""
        counts = self.offsets[1:] - self.offsets[:-1]
        return torch.arange(self.n_pos, device=counts.device).repeat_interleave(counts)

    def dots(
        self, rows: Float[Tensor, "feature d_model"], vectors: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, " node"]:
        """Return `rows[index] · vectors[pos]` for every active feature."""
        if self.dense:
            return (vectors @ rows.T).flatten()
        if len(self) == 0:
            return vectors.new_zeros(0)
        rows, index = self._read(rows)
        with warnings.catch_warnings():  # PyTorch says once that its CSR tensors are in beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                self.offsets,
                index,
                vectors.new_zeros(len(self)),
                (self.n_pos, len(rows)),
                check_invariants=False,
            )
        return torch.sparse.sampled_addmm(pattern, vectors, rows.T).values()

    def combine(
        self, rows: Float[Tensor, "feature d_model"], coefficient: Float[Tensor, " node"]
    ) -> Float[Tensor, "pos d_model"]:
        """Return, at every position, the sum of `coefficient * rows[index]` over its features."""
        if self.dense:
            return coefficient.view(self.n_pos, self.n_features) @ rows
        rows, index = self._read(rows)
        return torch.nn.functional.embedding_bag(
            index,
            rows,
            self.offsets,
            per_sample_weights=coefficient,
            mode="sum",
            include_last_offset=True,
        )

    def _read(
        self, rows: Float[Tensor, "feature width"]
    ) -> tuple[Float[Tensor, "used width"], Int[Tensor, " node"]]:
        """Rows that hold those of all active features, and where: narrow ones are gathered."""
        if not isinstance(rows, Narrow):
            return rows, self.index
        used, index = self.index.unique(return_inverse=True)
        return rows[used], index

    def spread_out(self) -> Float[Tensor, "pos feature"]:
        """Return the activation of every feature at every position, 0 where it is not active."""
        if self.dense:
            return self.activation.view(self.n_pos, self.n_features)
        everywhere = self.activation.new_zeros(self.n_pos, self.n_features)
        everywhere[self.pos, self.index] = self.activation
        return everywhere

    def sum_by_pos(self, amount: Float[Tensor, " node"]) -> Float[Tensor, " pos"]:
        """Return the sum of `amount` over the features of each position."""
        return amount.new_zeros(self.n_pos).index_add_(0, self.pos, amount)


def active_from_gates(
    pre: Float[Tensor, "pos feature"], gate: Float[Tensor, "pos feature"], *, dense: bool
) -> Active:
    """Return the active features of a layer from its pre-activations and gates.

    >>> import torch
    >>> pre = torch.tensor([[2.0, -1.0], [3.0, 4.0]])
    >>> active_from_gates(pre, (pre > 0).float(), dense=False).index.tolist()
    [0, 0, 1]
    """
    n_pos, n_features = pre.shape
    if dense:
        index = torch.arange(n_features, device=pre.device).repeat(n_pos)
        offsets = torch.arange(n_pos + 1, device=pre.device) * n_features
        return Active(index, offsets, (gate * pre).flatten(), gate.flatten(), n_features, True)
    pos, index = gate.nonzero(as_tuple=True)
    counts = torch.bincount(pos, minlength=n_pos)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    kept = gate[pos, index]
    return Active(index, offsets, kept * pre[pos, index], kept, n_features, False)
