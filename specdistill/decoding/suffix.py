"""Suffix decoding: runs are copied from the text itself and from earlier answers, the likeliest continuation first.

Source: Oliaro et al. 2024 (arXiv 2411.04975), as `arctic_inference.suffix_decoding` 0.3 does it, which vLLM's method
`suffix` calls: a tree counts what followed every run of tokens, one for this text and one for all answers. Every length
of the text's end is looked up in both; a run goes on with the most frequent token while its estimated probability
lasts, and the run with the highest sum of probabilities is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6


@dataclass(frozen=True)
class SuffixSettings:
    """vLLM's settings of the method, and its defaults."""

    depth: int = 24
    """Tokens of the longest run, with what is looked up (`suffix_decoding_max_tree_depth`)."""
    factor: float = 1.0
    """A run is at most so many times as long as what was looked up (`suffix_decoding_max_spec_factor`)."""
    least_probability: float = 0.1
    """Estimated probability below which a run ends (`suffix_decoding_min_token_prob`)."""


class _Node:
    """A run of tokens that occurred."""

    __slots__ = ("children", "count", "order", "token")

    def __init__(self, token: int) -> None:
        self.token, self.count = token, 0
        self.children: dict[int, _Node] = {}
        self.order: list[_Node] = []
        """The children, the most frequent first; equals stand as the original's list has them."""

    def count_child(self, token: int) -> _Node:
        """Counts one more occurrence of the run and a token after it."""
        child = self.children.get(token)
        if child is None:
            child = self.children[token] = _Node(token)
            self.order.append(child)
            child.count = 1
            return child
        order = self.order
        if len(order) > 1:
            place = order.index(child)
            before = order[place - 1].count if place else None
            if before is not None and before <= child.count + 1:
                # It goes to the front of those that stand before it: of its equals, or else of those with one more.
                first = next(index for index, other in enumerate(order) if other.count == before)
                order.insert(first, order.pop(place))
        child.count += 1
        return child


class _Tree:
    """Counts of all runs up to a depth, of several texts that grow."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._root = _Node(-1)

    def grow(self, ends: list[_Node], token: int) -> list[_Node]:
        """Appends a token to a text.

        Args:
            ends: The nodes of the text's last runs, the longest first.
            token: The token.

        Returns:
            The nodes of its last runs now.
        """
        return [node.count_child(token) for node in [*ends, self._root][-self._depth :]]

    def best(
        self, context: Sequence[int], ends: list[_Node], most: int, settings: SuffixSettings
    ) -> tuple[np.float32, list[int]]:
        """The run with the highest sum of probabilities after any end of a text, and that sum.

        Args:
            context: The text's last tokens, `depth` at most.
            ends: The nodes of those runs at its end that this tree has counted as its own, the longest first.
            most: Most tokens of the run.
            settings: Limits.
        """
        best, score = [], np.float32(0)
        for matched in range(1, len(context)):
            node = ends[-matched] if matched <= len(ends) else self._find(context[-matched:])
            if node is None:
                break
            limit = min(most, int(matched * settings.factor + _ROUNDING))
            found, run = _likeliest_run(node, limit, settings.least_probability)
            if found >= score:
                best, score = run, found
        return score, best

    def _find(self, run: Sequence[int]) -> _Node | None:
        node: _Node | None = self._root
        for token in run:
            node = node.children.get(token) if node is not None else None
        return node


def _likeliest_run(node: _Node, most: int, least: float) -> tuple[np.float32, list[int]]:
    # In float32, as the original adds up: which of two sums is higher may hang on it.
    run, score, probability = [], np.float32(0), np.float32(1)
    while len(run) < most and node.order:
        likeliest = node.order[0]
        probability *= np.float32(likeliest.count) / np.float32(node.count)
        node = likeliest
        if probability < np.float32(least):
            break
        run.append(node.token)
        score += probability
    return score, run


class SuffixMemory:
    """Earlier answers, as suffix decoding remembers them. It grows with every text that it begins.

    Args:
        settings: Limits of the method.
    """

    def __init__(self, settings: SuffixSettings | None = None) -> None:
        self.settings = settings or SuffixSettings()
        self.answers = _Tree(self.settings.depth)

    def __call__(self) -> SuffixLookup:
        """Begins a text."""
        return SuffixLookup(self)


class SuffixLookup:
    """A `Lookup`: one text, whose first `read` is its prompt.

    Args:
        memory: Shared by all texts of one server.
    """

    def __init__(self, memory: SuffixMemory) -> None:
        self._memory = memory
        self._own = _Tree(memory.settings.depth)
        self._context: list[int] = []
        self._own_ends: list[_Node] = []
        self._answer_ends: list[_Node] = []
        self._in_prompt = True

    def read(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            self._own_ends = self._own.grow(self._own_ends, token)
            if not self._in_prompt:
                self._answer_ends = self._memory.answers.grow(self._answer_ends, token)
        self._context = [*self._context, *token_ids][-self._memory.settings.depth :]
        self._in_prompt = False

    def copy(self, most: int) -> list[int]:
        settings = self._memory.settings
        own_score, own = self._own.best(self._context, self._own_ends, most, settings)
        score, remembered = self._memory.answers.best(self._context, self._answer_ends, most, settings)
        return own if own_score >= score else remembered
