"""Log-probabilities of given texts, from llama.cpp's server, which gives none for the tokens of a prompt.

The server reports the log-probability of each token that it writes, before any sampling option. So a grammar of token
ids makes it write the wanted tokens, one decoding step each. To compare the first tokens of many texts without one
request each, their logits are raised by a constant that leaves the others no probability: what is reported after
sampling is then the softmax over them alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

from .llamacpp_server import LlamaServer
from .scoring import score_tree

# exp(-100) is 0 next to the candidates; a larger number would cost digits of their logits, in float32.
_RAISED = 100.0


def score(
    server: LlamaServer, slot: int, prompt: Sequence[int], continuations: Sequence[Sequence[int]], partial: Set[int]
) -> list[float]:
    """Returns the log-probability of each continuation after the prompt, all token ids, in a slot of the server.

    `partial` are tokens that end within a character: the server does not report one that it writes, only all tokens
    with their log-probabilities, in megabytes of text.
    """

    def ask(path: Sequence[int], **options: Any) -> list[dict[str, Any]]:
        plain = {"temperature": 0.0, "samplers": ["temperature"], "stop": []}
        return server.next_token_probs(slot, prompt=list(path), **{**plain, **options})

    def forced(path: tuple[int, ...], tokens: tuple[int, ...]) -> list[float]:
        if not partial.isdisjoint(tokens):
            return [every_token(path + tokens[:place])[token] for place, token in enumerate(tokens)]
        grammar = f"root ::= {' '.join(f'<[{token}]>' for token in tokens)}"
        return [float(each["logprob"]) for each in ask(path, n_predict=len(tokens), n_probs=1, grammar=grammar)]

    def relative(path: tuple[int, ...], tokens: Sequence[int]) -> dict[int, float]:
        if not partial.isdisjoint(tokens):
            whole = every_token(path)
            return {token: whole[token] for token in tokens}
        bias = [[token, _RAISED] for token in tokens]
        options = {"post_sampling_probs": True, "logit_bias": bias, "temperature": 1.0}
        [found] = ask(path, n_predict=1, n_probs=len(tokens), **options)
        probs = {token["id"]: token["prob"] for token in found["top_probs"]}
        return {token: math.log(probs[token]) for token in tokens if probs.get(token)}

    def every_token(path: tuple[int, ...]) -> dict[int, float]:
        [found] = ask(path, n_predict=1, n_probs=10**7, logit_bias=[[server.tokenize("a")[-1], 1e6]])
        return {token["id"]: float(token["logprob"]) for token in found["top_logprobs"]}

    # Matrices are multiplied by other kernels for a whole prompt than for one token, with other rounding: so the
    # prompt is read first, and all that is compared is computed in the same way.
    server.next_token_probs(slot, prompt=list(prompt), n_predict=0)
    found = score_tree(tuple(prompt), {n: tuple(ids) for n, ids in enumerate(continuations)}, forced, relative)
    return [found[number] for number in range(len(continuations))]
