"""A feature in words: the tokens it promotes and suppresses, and those that excite it."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.global_weights import Way, reading
from attribution.places import Place, Places
from graphs.names import readable
from replacement.prompts import token_text


def feature_tokens(model: Any, feature: Any, k: int = 10) -> pd.DataFrame:
    """Return the tokens a feature promotes, suppresses, is excited by and is inhibited by.

    One row a token: relation, token, token_id, weight. "promoted" and "suppressed" (the logit lens)
    hold the k largest and smallest weights of what the feature writes on the logits, through the
    final norm's gain and centring, less their mean over the vocabulary, which no probability
    depends on. "excited" and "inhibited" (the de-embedding) hold those of the token embedding on
    the feature's pre-activation, along the residual stream: of a Lorsa head at the key it looks at.
    Denominators of norms are left out, so that weights compare within one relation of one feature.

    An attention SAE's features are excited through heads and have no such tokens; nor are there any
    behind a residual SAE, which replaces what the token wrote. `feature` and errors as in
    `attribution.connections.connections`.

    >>> from circuits import load
    >>> words = feature_tokens(load("four-tasks"), "L1.f18", k=2)
    >>> words["relation"].tolist()[::2]
    ['promoted', 'suppressed', 'excited', 'inhibited']
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r}: how many tokens, a whole number from 1.")
    places = Places(model.weights)
    found = places.feature(feature)
    place = places.named(found.layer, found.sublayer)
    index = torch.tensor([found.index], device=model.device)
    with torch.no_grad():
        promoted = promotions(places, place, index)[0]
        excited = excitations(places, place, index, token_writes(model))
    tables = [_table(model, ("promoted", "suppressed"), promoted, k)]
    if excited is not None:
        tables.append(_table(model, ("excited", "inhibited"), excited[0], k))
    return pd.concat(tables, ignore_index=True)


def promotions(
    places: Places, place: Place, index: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Return what features give to every logit, less the mean over the vocabulary."""
    weights = places.weights
    total = torch.zeros_like(weights.unembedding[:1]).repeat(len(index), 1)
    for number in places.visible(place, 2 * weights.n_layers):
        total = total + places.added(place, index, number)
    seen = weights.final_norm.unscaled(total)
    return seen @ weights.unembedding.T - (seen @ weights.mean_unembedding)[:, None]


def excitations(
    places: Places,
    place: Place,
    index: Int[Tensor, " row"],
    embedding: Float[Tensor, "d_vocab d_model"],
) -> Float[Tensor, "row d_vocab"] | None:
    """Return what every token's embedding gives to features' pre-activations.

    None where what tokens wrote is not in the stream that is read, or is read through heads.
    """
    branch = place.branches[0]
    replaced = [
        one for one in places.weights.streams if one < place.reads_at + (not place.replaces)
    ]
    if branch.head is not None or replaced:
        return None
    _, _, vectors = reading(places, place, Way(branch.via, branch, None), index)
    return vectors @ embedding.T


def token_writes(model: Any) -> Float[Tensor, "d_vocab d_model"]:
    """Return what every token writes into the residual stream, positions left out.

    That is the model's embedding times what the model multiplies it with (Gemma), which a run of
    one token tells. Raises ValueError where a model makes something else of its embedding.
    """
    embedding = model.hf_model.get_input_embeddings().weight.detach()[: model.weights.d_vocab]
    largest = int(embedding.norm(dim=1).argmax())
    row, written = embedding[largest], model.run([largest]).token_writes[0]
    scale = (row @ written) / (row @ row)
    if float((scale * row - written).norm()) > 1e-3 * float(written.norm()):
        raise ValueError(
            f"{type(model.hf_model).__name__} makes more of its token embedding than a multiple "
            "of it, so tokens have no fixed write vector. Leave the tokens that excite out."
        )
    return embedding * scale


def _table(
    model: Any, relations: tuple[str, str], weight: Float[Tensor, " d_vocab"], k: int
) -> pd.DataFrame:
    """The ends of a list of weights on tokens."""
    parts = []
    for relation, sign in zip(relations, (1, -1), strict=True):
        best = (sign * weight).topk(min(k, len(weight))).indices.tolist()
        parts.append(
            {
                "relation": [relation] * len(best),
                "token": [token_name(model, number) for number in best],
                "token_id": best,
                "weight": weight[best].double().tolist(),
            }
        )
    return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)


def token_name(model: Any, number: int) -> str:
    """Return a token's text, readable, or its id in brackets where there is no tokenizer."""
    if model.tokenizer is None:
        return f"[{number}]"
    return readable(token_text(number, model.tokenizer))
