"""The product: a graph, where it came from, and what can be done with it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from circuits.groups import check_test, grouped, labelled, with_groups
from graphs.files import read_file, save
from graphs.graph import Graph
from graphs.networks import to_networkx
from graphs.paths import strongest_paths
from graphs.pruning import prune
from graphs.view.page import page
from graphs.view.terminal import summary

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

    from circuits.attention import AttentionOf
    from circuits.faithfulness import Faithfulness
    from circuits.testing import KnockOuts, Patches
    from replacement.edits import EditedRun


class Circuit:
    """Nodes and signed edges that explain one target of one run.

    Made by `trace(target)` or `read(path)`. Never changes: `prune` and `attach` return new ones.
    A circuit read from a file has no model and needs no torch; `attach(model)` gives it one again.
    """

    def __init__(self, data: Graph, run: Any = None) -> None:
        self.data = data
        """The graph underneath (`graphs.Graph`)."""
        self.run = run
        """The `Run` it was traced in; None for a circuit read from a file."""

    @classmethod
    def of_trace(cls, data: Graph, run: Any) -> "Circuit":
        """Return the circuit of a graph just traced, with its conservation checked and noted."""
        checks = {**data.meta["checks"], "conservation": data.conservation()}
        return cls(data.noted(checks=checks), run)

    @property
    def model(self) -> Any:
        """The model it was traced in (`ReplacementModel`), or None."""
        return None if self.run is None else self.run.model

    @property
    def nodes(self) -> pd.DataFrame:
        """The node table: kind, layer, sublayer, pos, index, token, …, attribution (a copy)."""
        return self.data.nodes

    @property
    def edges(self) -> pd.DataFrame:
        """The edge table: source, target, via, flow, effect (a copy)."""
        return self.data.edges

    @property
    def value(self) -> float:
        """The target's value, as the original model computed it."""
        return self.data.value

    @property
    def meta(self) -> dict[str, Any]:
        """Where the circuit comes from: model, prompt, target, threshold, checks, versions."""
        return self.data.meta

    @property
    def explained(self) -> pd.Series:
        """What the value is made of: token, position, error, bias, pruned; they sum to it."""
        return self.data.explained()

    @cached_property
    def graph(self) -> "networkx.DiGraph":
        """The circuit as a networkx graph; columns of both tables are its attributes."""
        return to_networkx(self.data)

    def matrix(self, weight: str = "flow") -> "csr_array":
        """Return the edges as a scipy sparse matrix [target, source] over the rows of `nodes`."""
        from graphs.matrices import to_matrix

        return to_matrix(self.data, weight)

    def prune(self, share: int | float = 0.8) -> "Circuit":
        """Return the circuit of its strongest nodes and edges.

        The fewest nodes that hold `share` of all |attribution|; of the edges between them those
        among the strongest that hold `share` of all |flow|; then what dangles goes. See
        `graphs.pruning.prune`. What is removed stays in the books, in `in_pruned` and
        `out_pruned`, so that `explained` still sums to the value.
        """
        return Circuit(prune(self.data, share), self.run)

    def paths(self, k: int = 5) -> pd.DataFrame:
        """Return the `k` strongest paths from a token to the target, and what each carries."""
        return strongest_paths(self.data, k)

    def page(self, other: "Circuit | None" = None) -> str:
        """Return one HTML page to look around in, that needs no network and nothing beside it.

        With `other`: both in one, what they share and not. See `graphs.view.page.page`.
        """
        return page(self.data, None if other is None else other.data)

    def show(self, other: "Circuit | None" = None) -> Path | None:
        """Show the page, with another circuit in it or alone, in the notebook, or else in the
        browser; return the file it is in, if any."""
        from circuits.showing import show

        return show(self.page(other))

    def label(self, labels: Mapping[int, str]) -> "Circuit":
        """Return the circuit with these labels of nodes, by number; "" takes one away.

        Raises KeyError for a number that is no node.
        """
        return Circuit(labelled(self.data, labels), self.run)

    def group(self, groups: Mapping[str, Sequence[int]]) -> "Circuit":
        """Return the circuit with these groups of nodes (supernodes): {label: node numbers}.

        They stand in `meta["groups"]`, are drawn as one box each, and replace earlier ones. Raises
        ValueError where a number is no node or is in two groups.
        """
        return Circuit(with_groups(self.data, groups), self.run)

    def detailed(
        self,
        *,
        tokens: int = 5,
        attention: int = 12,
        test: "KnockOuts | Patches | None" = None,
        cards: Any = None,
    ) -> "Circuit":
        """Return the circuit with what its model says about nodes, kept in files, shown in pages.

        `tokens`: so many that every node promotes and suppresses by itself; `attention`: of the
        strongest so many heads and Lorsa heads, where they looked and why; `test`: what
        `circuit.test()` returned, the measured effects; `cards`: what `read_cards(folder)` did, its
        features' cards. In `meta["details"]`, beside others; of a contrast only `test` and `cards`.
        Raises ValueError for a circuit without a model, or cards of another.

        >>> from circuits import load, trace
        >>> run = load("four-tasks").run("apple Oliver tower siege lamp apple Oliver tower")
        >>> circuit = trace(run.logit(" siege") - run.logit(" lamp"), max_nodes=20)
        >>> sorted(circuit.detailed(tokens=3, attention=1).meta["details"])
        ['attention', 'tokens']
        """
        from circuits.detailing import details_of

        if "against" in self.meta:
            tokens = attention = 0
        run = self._attached("detailed")
        details = details_of(self.data, run, tokens, attention, test, cards)
        known = self.meta.get("details", {})
        return Circuit(self.data.noted(details={**known, **details}), self.run)

    def save(self, path: str | Path) -> Path:
        """Write the circuit and return where; the ending decides what, see `graphs.files.save`.

        Written under a temporary name and renamed, so that no half file is ever left. Two traces of
        the same target give the same bytes. Raises ValueError for an ending that is not known.
        """
        save(self.data, path)
        return Path(path)

    def attach(self, model: Any) -> "Circuit":
        """Return the circuit with a model again, after checking that it is the same one.

        The prompt is run anew; ValueError if the target or the attributions do not come out as they
        were saved.
        """
        from circuits.attaching import run_of_circuit

        return Circuit(self.data, run_of_circuit(self.data, model))

    def test(
        self,
        groups: Any = None,
        *,
        scale: int | float = 0,
        random: int = 0,
        seed: int = 0,
        batch: int | None = None,
        progress: bool = True,
    ) -> "KnockOuts | Patches":
        """Return predicted and measured effects of knocking out every node, one at a time.

        Measured with everything held, with patterns held, and in the real model
        (`circuits.testing.knock_out_each`); `.agreement` says how well the prediction agrees with
        each. In a contrast every node is set to what it was in the other run instead.

        `groups`: sets of nodes to knock out together, by number or name, in a list or a mapping by
        name; `random`: so many random sets as well. `scale`: nodes are set to so many times what
        they were, 0 knocks out. `batch`: so many at once; by default as many as keep the memory
        small. Raises ValueError for a circuit without a model, groups of nodes it does not have,
        and groups in a contrast.
        """
        from circuits.testing import knock_out_each, knock_out_sets, patch_each, random_sets

        check_test(scale, random, batch)
        run = self._attached("test")
        options: dict[str, Any] = {"batch": batch, "progress": progress}
        if "against" in self.meta:
            if groups is not None or random or scale:
                raise ValueError(
                    "circuit.test(groups, random, scale): a contrast is tested by patching its "
                    "nodes one at a time. Leave them out, or trace without against=."
                )
            return patch_each(self.data, run, **options)
        if groups is None and not random:
            return knock_out_each(self.data, run, scale=scale, **options)
        sets = {**grouped(self.data, groups), **random_sets(self.data, random, seed)}
        return knock_out_sets(self.data, run, sets, scale=scale, **options)

    def without(self, nodes: Any, mode: str = "free") -> "EditedRun":
        """Return the circuit's run with nodes of it set to 0, by number or name.

        `.logits`, and `.value(target)` of any target of the run; `mode` as in `Run.edited`.
        """
        from circuits.testing import as_nodes
        from replacement.edits import Scale

        run = self._attached("without")
        if "against" in self.meta:
            raise ValueError(
                "circuit.without(...): a contrast is of two runs. Edit one: circuit.run.clean."
                "edited(...), or trace without against=."
            )
        given = nodes if isinstance(nodes, list | tuple) else [nodes]
        rows = self.nodes.loc[grouped(self.data, [given])["group 0"]]
        return run.edited([Scale(as_nodes(rows), 0)], mode)

    def faithfulness(
        self,
        prompts: Any = None,
        *,
        ablate: str | None = None,
        on: Any = None,
        roles: Any = None,
        groups: Any = None,
        shares: Any = None,
        random: int = 8,
        greedy: int = 2,
        strongest: int = 16,
        seed: int = 0,
        batch: int | None = None,
        progress: bool = True,
    ) -> "Faithfulness":
        """Return what is left of the target with only the circuit, and with all but the circuit.

        In the real model every node outside the circuit, active or not, errors included, is set to
        its reference value at its position; tokens and positions are the prompt and stay.
        `ablate`: "mean" over `prompts` (a list of prompts or runs), "resample" from one other
        prompt of equal length, or "zero"; by default "mean" with prompts and "zero" without.
        Positions are aligned by index; where lengths differ, by `roles`: one mapping from name to
        position for this prompt and one for each of `prompts`; positions without a name share one
        mean.

        Measured: f = (m(C) - m(∅)) / (m(M) - m(∅)) of the circuit, of its complement, and of the
        strongest nodes at rising `shares` of all active nodes and errors (MIB's by default; the
        circuit's own first by |attribution|, then the others by the ungated one; a share of 1 is
        the whole model), with MIB's CPR and CMD; completeness without `random` halves of the
        circuit, `groups` (as in `test`; by default the circuit's own, or the nodes of each
        position) and up to `greedy` of the `strongest` nodes, searched for; minimality of the
        `strongest`, with the worst set found likewise. `on`: targets of other runs of equal
        length, whose mean is measured instead of this one.

        Raises ValueError for a circuit without a model or of a contrast, and for prompts, roles or
        numbers that make no sense.

        >>> from circuits import load, trace
        >>> model = load("four-tasks")
        >>> run = model.run("When Mary and John went to the store, John gave a drink to")
        >>> circuit = trace(run.logit(" Mary") - run.logit(" John"))
        >>> result = circuit.faithfulness(progress=False)
        >>> result.faithfulness > 0.9 > 0.1 > result.complement_share
        True
        """
        from circuits.faithfulness import faithfulness_of

        return faithfulness_of(
            self.data,
            self._attached("faithfulness"),
            prompts,
            ablate=ablate,
            on=on,
            roles=roles,
            groups=groups,
            shares=shares,
            random=random,
            greedy=greedy,
            strongest=strongest,
            seed=seed,
            batch=batch,
            progress=progress,
        )

    def attention(self, node: int | str, *, keys: int = 2, max_nodes: int = 64) -> "AttentionOf":
        """Return what a head or Lorsa head moved from which key, and why it looked there.

        `node`: its number in the node table or its name ("L1.head 3@14"). For the `keys` keys it
        moved most from: the exact split of the attention score over pairs of nodes (of the whole
        run, not of this circuit alone, with at most `max_nodes` a side named), and of the score's
        contrast with all other keys; `keys=0` leaves both out, and so does a key from which less
        than 5 % came (`attribution.score_pairs.score_pairs` splits any score). See
        `circuits.attention.attention_of`.

        >>> from circuits import load, trace
        >>> model = load("four-tasks", attention="heads")
        >>> run = model.run("apple Oliver tower siege lamp apple Oliver tower")
        >>> circuit = trace(run.logit(" siege") - run.logit(" lamp"))
        >>> heads = circuit.nodes[circuit.nodes["kind"].eq("head")]
        >>> answer = circuit.attention(int(heads["attribution"].idxmax()))
        >>> bool(abs(answer.keys["moved"].sum() - answer.attribution) < 1e-3)
        True
        """
        from circuits.attention import attention_of

        for name, count, least in (("keys", keys, 0), ("max_nodes", max_nodes, 1)):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(
                    f"circuit.attention({name}={count!r}): a whole number, {least} or more."
                )
        if "against" in self.meta:
            raise ValueError(
                "circuit.attention(...): in a contrast the edges with via q and k say why a head "
                "looked elsewhere. For the scores of one run, trace without against=."
            )
        return attention_of(
            self.data, self._attached("attention"), node, keys=keys, max_nodes=max_nodes
        )

    def weights(self) -> pd.DataFrame:
        """Return the edges between scalar nodes as what the run brought times the global weight.

        One row an edge: activation, to_target, held, their product `factor`, `weight` and `flow`.
        See `circuits.edge_weights.edge_weights`. Raises ValueError for a circuit without a model, a
        contrast, or one traced with `edges="direct"`.

        >>> from circuits import load, trace
        >>> run = load("four-tasks").run(
        ...     "When Mary and John went to the store, John gave a drink to"
        ... )
        >>> split = trace(run.logit(" Mary") - run.logit(" John")).weights()
        >>> bool(((split["factor"] * split["weight"] - split["flow"]).abs() < 1e-6).all())
        True
        """
        from circuits.edge_weights import edge_weights

        if "against" in self.meta or self.meta.get("edges") == "direct":
            what = "a contrast" if "against" in self.meta else 'a trace with edges="direct"'
            raise ValueError(
                f"circuit.weights(): this is {what}, whose edges are no products of one weight. "
                "Trace without against= and edges=."
            )
        return edge_weights(self.data, self._attached("weights"))

    def _attached(self, method: str) -> Any:
        """The run, or an error that says how to get one."""
        if self.run is None:
            given = dict(self.meta.get("layers", {}))
            if self.data.kept_in != "float32":
                given["dtype"] = self.data.kept_in
            layers = "".join(f", {part}={what!r}" for part, what in given.items())
            raise ValueError(
                f"circuit.{method}(...): this circuit was read from a file and has no model. Give "
                f"it one: circuit.attach(load({self.meta.get('model', '...')!r}{layers}))"
                f".{method}(...)"
            )
        return self.run

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from circuits.showing import mimebundle

        return mimebundle(self.data)

    def __repr__(self) -> str:
        return summary(self.data)


def read(path: str | Path) -> Circuit:
    """Return the circuit saved in a file, without a model and without importing torch.

    `.circuit` and `.json` (ours, Neuronpedia's, circuit-tracer's); circuit-tracer's `.pt`, which
    needs torch, and of which nothing is run. Raises FileNotFoundError or ValueError for a missing,
    truncated or foreign file.
    """
    if Path(path).suffix.lower() == ".pt" and Path(path).is_file():
        from circuits.foreign_graph import read_pt

        return Circuit(read_pt(Path(path)))
    return Circuit(read_file(path))
