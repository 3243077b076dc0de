"""Prefix cache: a radix tree of keys and values for each role.

A node holds the keys and values of the tokens that it adds to its parent's, so whatever two prompts share is stored
once: the worked examples of all problems, chunks 1..k of a trunk, an alternative up to its diverging token (the same
structure as SGLang's RadixAttention; Zheng et al. 2024). Invariant: a stored key depends only on its role and the
tokens up to it, so cached values are what a forward would compute. The bytes stay within the budget; the least recently
used leaves are evicted first.

    cache.insert("answer", (1, 5, 6, 7), copy)      # root -(1 5 6 7)
    cache.insert("answer", (1, 5, 9), copy)         # root -(1 5)-+-(6 7)
                                                    #             +-(9)
    cache.find("answer", (1, 5, 6, 8))              # [Segment(0, 2, ...), Segment(2, 3, ...)]: three tokens are cached

The tensors of a node, one for each group of planes of equal shape (`kv_rows`), have tokens on the second-to-last axis.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from flow_dpo.core.types import Role, TokenIds

_logger = logging.getLogger(__name__)

Planes = tuple[torch.Tensor, ...]
"""Keys and values of consecutive tokens in all layers."""


class Segment(NamedTuple):
    """Cached keys and values of the tokens [begin, end) of a prompt."""

    begin: int
    end: int
    planes: Planes


@dataclass(slots=True, eq=False)
class _Node:
    tokens: TokenIds
    planes: Planes
    parent: _Node | None
    used: int
    children: dict[int, _Node] = field(default_factory=dict["int", "_Node"])
    """Child nodes by their first token."""
    evicted: dict[int, TokenIds] = field(default_factory=dict[int, TokenIds])
    """The tokens of evicted children by their first token, to notice when they are computed again."""

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)


@dataclass(frozen=True, slots=True)
class Found:
    """A place in the cache: the node that ends with the first `end` tokens of a prompt. A split keeps it valid."""

    node: _Node
    end: int


class PrefixCache:
    """Keys and values by role and prefix, within a budget of bytes, with least-recently-used eviction."""

    def __init__(self, budget_bytes: int) -> None:
        self.num_bytes = 0
        self.evicted_tokens = 0
        self._budget_bytes = budget_bytes
        self._roots: dict[Role, _Node] = {}
        self._clock = itertools.count()
        self._serial = itertools.count()
        self._heap: list[tuple[int, int, _Node]] = []
        """Leaves by their last use. An entry can be out of date, so it is compared with its node before an eviction."""
        self._warned = False

    def find(self, role: Role, tokens: TokenIds) -> list[Segment]:
        """The cached segments of this prefix from its beginning, without a gap; marks them as used now."""
        return self.search(role, tokens)[0]

    def search(self, role: Role, tokens: TokenIds) -> tuple[list[Segment], Found | None]:
        """The same, and the last node whose tokens all belong to the prefix, for `insert`."""
        segments: list[Segment] = []
        begin, now = 0, next(self._clock)
        node = last = self._roots.get(role)
        while last is not None and begin < len(tokens):
            node = last.children.get(tokens[begin])
            if node is None:
                break
            node.used = now
            shared = common_prefix(node.tokens, tokens, begin)
            # The prompt leaves the tree inside this node: only the node's first tokens are shared.
            if shared < len(node.tokens):
                segments.append(Segment(begin, begin + shared, tuple(p[..., :shared, :] for p in node.planes)))
                break
            segments.append(Segment(begin, begin + shared, node.planes))
            begin, last = begin + shared, node
        return segments, None if last is None else Found(last, begin)

    def insert(
        self, role: Role, tokens: TokenIds, copy: Callable[[int, int], Planes], found: Found | None = None
    ) -> Found:
        """Store this prefix and return its place. `copy(begin, end)` creates the tensors of what is not cached yet.
        With `found`, an earlier place of these tokens, the search begins there."""
        now = next(self._clock)
        # 1. Walk down the tree along the tokens; where they part inside a node, split it.
        root = self._roots.setdefault(role, _Node((), (), None, now))
        node, begin = root, 0
        if found is not None and found.node.parent is not None:  # otherwise the node was evicted since
            node, begin = found.node, found.end
        while begin < len(tokens):
            node.used = now
            child = node.children.get(tokens[begin])
            if child is None:
                # 2. All remaining tokens are new: one leaf for them.
                node = self._add(node, tokens[begin:], copy(begin, len(tokens)), now)
                break
            shared = common_prefix(child.tokens, tokens, begin)
            begin += shared
            node = child if shared == len(child.tokens) else self._split(child, shared)
        node.used = now
        # 3. Drop leaves until the budget holds again.
        self._evict()
        return Found(node, len(tokens))

    def set_budget(self, budget_bytes: int) -> None:
        """Hold at most this many bytes from now on; evicts at once."""
        self._budget_bytes = budget_bytes
        self._evict()

    def clear(self) -> None:
        """Drop everything and free its memory at once, by cutting the reference cycles of parents and children."""
        nodes = list(self._roots.values())
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            node.children.clear()
            node.parent, node.planes = None, ()
        self._roots.clear()
        self._heap.clear()
        self.num_bytes = 0

    def _add(self, parent: _Node, tokens: TokenIds, planes: Planes, now: int) -> _Node:
        evicted = parent.evicted.pop(tokens[0], ())
        if evicted and not self._warned and common_prefix(evicted, tokens, 0) == min(len(evicted), len(tokens)):
            self._warned = True
            _logger.warning(
                "kv_budget_gib is too small for the rollouts under way: some keys and values were evicted before they "
                "were needed again and are computed a second time, which is slower but changes no token"
            )
        child = _Node(tokens, planes, parent, now)
        parent.children[tokens[0]] = child
        self.num_bytes += child.num_bytes
        self._push(child)
        return child

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node in two; return the upper part. Both parts are copied, so that evicting one frees its memory."""
        assert node.parent is not None
        upper = _Node(node.tokens[:at], tuple(p[..., :at, :].clone() for p in node.planes), node.parent, node.used)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.planes = node.tokens[at:], tuple(p[..., at:, :].clone() for p in node.planes)
        node.parent = upper
        upper.children[node.tokens[0]] = node
        return upper

    def _push(self, node: _Node) -> None:
        heapq.heappush(self._heap, (node.used, next(self._serial), node))

    def _evict(self) -> None:
        while self.num_bytes > self._budget_bytes and self._heap:
            used, _, node = heapq.heappop(self._heap)
            parent = node.parent
            if parent is None or node.children:
                continue
            if node.used > used:
                self._push(node)  # it was used since: queue it again with its current time
                continue
            del parent.children[node.tokens[0]]
            parent.evicted[node.tokens[0]] = node.tokens
            node.parent = None
            self.num_bytes -= node.num_bytes
            node.planes = ()  # a `Found` that is still held keeps no memory
            self.evicted_tokens += len(node.tokens)
            if parent.parent is not None and not parent.children:
                self._push(parent)


def common_prefix(known: TokenIds, tokens: TokenIds, begin: int) -> int:
    """The length of the common prefix of `known` and `tokens[begin:]`."""
    longest = min(len(known), len(tokens) - begin)
    if known[:longest] == tokens[begin : begin + longest]:
        return longest
    return next(index for index in range(longest) if known[index] != tokens[begin + index])
