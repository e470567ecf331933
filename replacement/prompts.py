"""From text, chat messages or token ids to one prompt, and from a word to the token it is."""

import difflib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, SupportsIndex

import torch
from jaxtyping import Int
from torch import Tensor

MAX_SHOWN = 6


def token_ids_of(
    prompt: Any, tokenizer: Any, *, d_vocab: int, n_context: int | None
) -> Int[Tensor, " pos"]:
    """Return the token ids of one prompt given as text, as chat messages or as ids.

    Text gets the special tokens its tokenizer adds (a BOS where it has one); text that starts with
    the BOS is not given a second one. Messages get those of the tokenizer's chat template and no
    others. Ids get none. Raises ValueError or TypeError for an empty or too long prompt, a batch,
    padding, malformed messages, unknown words and ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        ids = _ids_of_text(prompt, tokenizer)
    elif _is_chat(prompt):
        ids = _ids_of_messages(prompt, tokenizer)
    else:
        ids = _ids_of_list(prompt)
    if len(ids) == 0:
        raise ValueError(
            f"the prompt {prompt!r} is empty: no token, so no prediction to explain. "
            "Give text or a list of at least one token id."
        )
    if n_context is not None and len(ids) > n_context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the model's context is {n_context}. "
            "Shorten it, or explain a later prediction of a shorter passage."
        )
    outside = [number for number in ids if not 0 <= number < d_vocab]
    if outside:
        raise ValueError(
            f"token ids {outside[:MAX_SHOWN]} are outside the vocabulary of {d_vocab} tokens. "
            "Ids made by another tokenizer?"
        )
    _refuse_padding(ids, tokenizer)
    return torch.tensor(ids, dtype=torch.long)


def _ids_of_text(prompt: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        raise ValueError(
            f"the prompt {prompt!r} is text and this model was loaded without a tokenizer. "
            "Give token ids, or load(model, tokenizer=...)."
        )
    begins_with_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    ids = list(tokenizer(prompt, add_special_tokens=not begins_with_bos)["input_ids"])
    if _is_unknown(prompt, tokenizer):
        _refuse_unknown(prompt, tokenizer)
    only_special = ids and all(number in tokenizer.all_special_ids for number in ids)
    return [] if only_special and not prompt.strip() else ids


def _is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages, be they sound or not."""
    return isinstance(prompt, Sequence) and any(isinstance(entry, Mapping) for entry in prompt)


def _ids_of_messages(messages: Sequence[Any], tokenizer: Any) -> list[int]:
    """The template's tokens: an answer is begun after them, or the assistant's last one goes on."""
    if tokenizer is None:
        raise ValueError(
            "the prompt is chat messages and this model was loaded without a tokenizer. Give token "
            "ids, or load(model, tokenizer=...)."
        )
    for number, message in enumerate(messages):
        _check_message(number, message)
    if not tokenizer.chat_template:
        raise ValueError(
            "the prompt is chat messages and the tokenizer of this model has no chat template, so "
            "nothing says how they are written down. Give one text, load a model that was trained "
            "on chats, or set tokenizer.chat_template."
        )
    continued = messages[-1]["role"] == "assistant"
    settings = {"add_generation_prompt": not continued, "continue_final_message": continued}
    given = [dict(message) for message in messages]
    try:
        written = tokenizer.apply_chat_template(given, tokenize=False, **settings)
        ids = tokenizer.apply_chat_template(given, tokenize=True, return_dict=False, **settings)
    except Exception as problem:  # a template is a program of its own and raises what it likes
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ValueError(
            f"the chat template of this tokenizer refuses the messages: {reason[0]:.200}. Roles "
            f"given: {', '.join(message['role'] for message in messages)}."
        ) from None
    answer = messages[-1]["content"]
    if continued and not written.endswith(answer.lstrip() or answer):
        raise ValueError(
            f"the chat template of this tokenizer does not keep the end of the answer to be "
            f"continued: {answer[-30:]!r} is written as {written[-30:]!r}, after which another "
            "token follows. End the answer without space, or give the whole prompt as one text."
        )
    for message in messages:
        if _is_unknown(message["content"], tokenizer):
            _refuse_unknown(message["content"], tokenizer)
    return list(ids)


def _check_message(number: int, message: Any) -> None:
    fits = '{"role": "user", "content": "…"}'
    if not isinstance(message, Mapping):
        raise TypeError(
            f"message {number} of the chat is {type(message).__name__}: {message!r:.60}. Each is a "
            f"mapping such as {fits}."
        )
    for name in ("role", "content"):
        if name not in message:
            raise ValueError(
                f"message {number} of the chat has no {name!r} (keys: "
                f"{', '.join(map(str, message)) or 'none'}). Each is a mapping such as {fits}."
            )
        if not isinstance(message[name], str):
            raise TypeError(
                f"message {number} of the chat has a {name!r} that is no text but "
                f"{type(message[name]).__name__}: {message[name]!r:.60}. Each is a mapping such as "
                f"{fits}."
            )


def _refuse_unknown(prompt: str, tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    pieces = prompt.replace(",", " ").replace(".", " ").split()
    unknown = [
        word
        for word in dict.fromkeys(pieces)
        if all(_is_unknown(spelling, tokenizer) for spelling in (word, " " + word))
    ] or [prompt]
    hints = []
    for word in unknown[:MAX_SHOWN]:
        near = difflib.get_close_matches(" " + word, vocabulary, n=3, cutoff=0.7)
        hints.append(repr(word) + (f" (nearest: {', '.join(map(repr, near))})" if near else ""))
    raise ValueError(
        f"words that the vocabulary of {len(vocabulary)} tokens does not hold: {', '.join(hints)}. "
        "Use words the model was trained on."
    )


def _is_unknown(text: str, tokenizer: Any) -> bool:
    """Whether the tokenizer put its unknown token where the text does not ask for it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids and tokenizer.unk_token not in text


def _ids_of_list(prompt: Any) -> list[int]:
    if isinstance(prompt, Mapping) or hasattr(prompt, "input_ids"):
        _refuse_masked(prompt.get("attention_mask"))
        if "role" in prompt and "input_ids" not in prompt:
            raise TypeError(
                "one chat message outside a list. Give a list of messages, also of one: "
                f"[{dict(prompt)!r:.60}]."
            )
        if "input_ids" not in prompt:
            raise TypeError(
                f"a mapping without input_ids (keys: {', '.join(map(str, prompt))}). Give text, a "
                "list of token ids, a list of chat messages, or what a tokenizer returned."
            )
        prompt = prompt["input_ids"]
    if isinstance(prompt, Tensor) or hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise TypeError(
            "a prompt is text, a list of token ids or one of chat messages; got "
            f"{type(prompt).__name__}: {prompt!r:.60}."
        )
    if any(not isinstance(entry, str) and _is_chat(entry) for entry in prompt):
        raise ValueError(
            f"a list of {len(prompt)} chats: one run records one. Give the messages of one chat, "
            "[{'role': …, 'content': …}, …], and call model.run for each."
        )
    if len(prompt) == 1 and isinstance(prompt[0], Sequence) and not isinstance(prompt[0], str):
        prompt = prompt[0]
    if any(isinstance(entry, Sequence) and not isinstance(entry, str) for entry in prompt):
        raise ValueError(
            f"a batch of {len(prompt)} prompts: one run records one prompt. "
            "Call model.run for each."
        )
    wrong = [entry for entry in prompt if whole_number(entry) is None]
    if wrong:
        raise TypeError(
            f"token ids are integers; got {wrong[:MAX_SHOWN]!r}. Text is given as one string."
        )
    return [int(entry) for entry in prompt]


def _refuse_masked(mask: Any) -> None:
    rows = mask.tolist() if hasattr(mask, "tolist") else list(mask or [])
    flat = [entry for row in rows for entry in (row if isinstance(row, list) else [row])]
    if not all(flat):
        raise ValueError(
            "the attention mask hides some tokens: a padded batch. Circuits are traced in one "
            "unpadded prompt; give the token ids of that prompt alone."
        )


def _refuse_padding(ids: list[int], tokenizer: Any) -> None:
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or pad in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    places = [place for place, number in enumerate(ids) if number == pad]
    if places:
        raise ValueError(
            f"padding tokens ({tokenizer.pad_token!r}, id {pad}) at positions "
            f"{places[:MAX_SHOWN]}: a padded batch. Give the token ids of one unpadded prompt."
        )


def token_texts(ids: Int[Tensor, " pos"], tokenizer: Any) -> list[str]:
    """Return the text of every token, or its id in brackets where there is no tokenizer."""
    if tokenizer is None:
        return [f"[{number}]" for number in ids.tolist()]
    return [token_text(number, tokenizer) for number in ids.tolist()]


def token_text(number: int, tokenizer: Any) -> str:
    """Return what a token adds to a running text, the space in front of it included.

    Decoders of SentencePiece drop the space of a first token, so the second of two is read.
    """
    once, twice = (
        tokenizer.decode([number] * times, clean_up_tokenization_spaces=False) for times in (1, 2)
    )
    return twice[len(once) :]


def whole_number(value: Any) -> int | None:
    """Return a whole number of any library (NumPy, a tensor of one) as an int; None for others.

    >>> whole_number(3), whole_number(3.0), whole_number(True)
    (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def single_token(token: str | SupportsIndex, tokenizer: Any, d_vocab: int) -> int:
    """Return the id of a token given as text or id.

    Text means the token that adds exactly this to a running text. Where none does, " Mary" and
    "Mary" mean the same token. Raises ValueError for text of several tokens, unknown text and ids
    outside the vocabulary.
    """
    number = whole_number(token)
    if number is not None:
        if not 0 <= number < d_vocab:
            raise ValueError(f"token id {number} is outside the vocabulary of {d_vocab} tokens.")
        return number
    if not isinstance(token, str):
        raise TypeError(f"a token is text or an integer id; got {type(token).__name__}: {token!r}.")
    if tokenizer is None:
        raise ValueError(
            f"the token {token!r} is text and this model was loaded without a tokenizer. "
            "Give its id, or load(model, tokenizer=...)."
        )
    other = token[1:] if token.startswith(" ") else " " + token
    spellings = (token, other) if token else ()
    found = [number for text in spellings for number in _as_one_token(text, tokenizer)]
    exact = [number for number in found if token_text(number, tokenizer) == token]
    if not found:
        _refuse_token(token, tokenizer)
    return (exact or found)[0]


def _as_one_token(text: str, tokenizer: Any) -> Iterator[int]:
    """The token that the tokenizer makes of a text, and the one of the vocabulary that adds it.

    They differ where a tokenizer puts a space before every text: ")" alone is read as " )".
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and not _is_unknown(text, tokenizer):
        yield ids[0]
    entry = tokenizer.convert_tokens_to_ids(text)
    if entry is not None and token_text(entry, tokenizer) == text:
        yield entry


def _refuse_token(token: str, tokenizer: Any) -> NoReturn:
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids or not ids:
        near = difflib.get_close_matches(token, tokenizer.get_vocab(), n=3, cutoff=0.5)
        nearest = f" Nearest: {', '.join(map(repr, near))}." if near else ""
        raise ValueError(
            f"run.logit({token!r}): the vocabulary does not hold it.{nearest} "
            "Give a token of the vocabulary, or its id."
        )
    pieces = [token_text(number, tokenizer) for number in ids]
    raise ValueError(
        f"run.logit({token!r}): {len(ids)} tokens here: {' '.join(map(repr, pieces))}. "
        f"A logit is one token. Explain the first: run.logit({pieces[0]!r}), or give ids: "
        f"run.logit({ids[0]})."
    )
