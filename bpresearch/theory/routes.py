"""Sums over all paths through a graph of matrices, and its largest paths, by dynamic programming.

A node is a vector of units, an edge from a to b the matrix of factors from each unit of a to each of b. A
path is a chain of elements of matrices, its product that of their values. The last node has one unit.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Factors(NamedTuple):
    """A sparse matrix: its elements that are not zero, each from a unit before to a unit after."""

    values: Float[np.ndarray, " elements"]
    after: Int[np.ndarray, " elements"]
    before: Int[np.ndarray, " elements"]
    units: int  # before, all of them


class Edge(NamedTuple):
    """The factors between two nodes; nodes are numbered so that paths ascend."""

    before: int
    after: int
    factors: Factors


class Route(NamedTuple):
    """A path: its product, and for each edge on it its index, the unit that it leads to, and the factor."""

    product: float
    edges: tuple[int, ...]
    units: tuple[int, ...]
    factors: tuple[float, ...]


class Ways(NamedTuple):
    """The largest ways from each unit of a node to the end, largest first: (units, ways).

    Their products, zero where there are fewer, and how they begin: with which edge, with which element of its
    factors, and with which of the ways from the unit that this element leads to.
    """

    products: Float[np.ndarray, "units ways"]
    edges: Int[np.ndarray, "units ways"]
    elements: Int[np.ndarray, "units ways"]
    onward: Int[np.ndarray, "units ways"]


def total(edges: Sequence[Edge], start: int, end: int) -> float:
    """The sum of the products of all paths: back-propagation, from the end to the start."""
    bars: dict[int, np.ndarray] = {end: np.ones(1)}
    for edge in sorted(edges, key=lambda edge: -edge.after):
        if edge.after in bars:
            values, after, before, units = edge.factors
            bar = np.bincount(before, values * bars[edge.after][after], units)
            bars[edge.before] = bars.get(edge.before, 0) + bar
    return float(bars[start][0]) if start in bars else 0.0


def live(edges: Sequence[Edge], start: int, end: int) -> set[int]:
    """The indices of the edges that some path passes whose product is not zero."""
    forward = sorted(enumerate(edges), key=lambda pair: pair[1].before)
    from_start, to_end = {start: np.ones(1, bool)}, {end: np.ones(1, bool)}
    units = {edge.before: edge.factors.units for edge in edges} | {end: 1}
    for _, edge in forward:
        values, after, before, _ = edge.factors
        if edge.before in from_start and edge.after in units:
            reached = from_start.setdefault(edge.after, np.zeros(units[edge.after], bool))
            reached[after[(values != 0) & from_start[edge.before][before]]] = True
    passed = set()
    for index, edge in sorted(forward, key=lambda pair: -pair[1].after):
        values, after, before, _ = edge.factors
        if edge.before in from_start and edge.after in to_end:
            through = (values != 0) & from_start[edge.before][before] & to_end[edge.after][after]
            to_end.setdefault(edge.before, np.zeros(edge.factors.units, bool))[before[through]] = True
            passed |= {index} if through.any() else set()
    return passed


def largest(edges: Sequence[Edge], start: int, end: int, count: int) -> list[Route]:
    """The paths with the largest absolute products, the largest first.

    The best paths through a unit end in the best ways from it, so each unit keeps that many.
    """
    if count == 0:
        return []
    there = np.eye(1, count)  # one way, whose product is 1
    ways = {end: Ways(there, *np.zeros((3, 1, count), int))}
    begun: dict[int, list[tuple[np.ndarray, ...]]] = defaultdict(list)
    size = {edge.before: edge.factors.units for edge in edges}
    for index, edge in sorted(enumerate(edges), key=lambda pair: -pair[1].after):
        if edge.after in begun:
            ways[edge.after] = _best(begun.pop(edge.after), size[edge.after], count)
        if edge.after in ways:
            begun[edge.before].append(_beginning_with(index, edge, ways[edge.after], count))
    if start not in begun:
        return []
    ways[start] = _best(begun[start], size[start], count)
    return [_route(edges, ways, start, end, n) for n in range(count) if ways[start].products[0, n]]


def _beginning_with(index: int, edge: Edge, ways: Ways, count: int) -> tuple[np.ndarray, ...]:
    """Ways that begin with an edge: the unit before, the product, the edge, its element, the way after."""
    values, after, before, _ = edge.factors
    # More than `count` units after are never needed: the first way of each is its best.
    elements, _ = _leaders(before, values * ways.products[after, 0], count)
    products = values[elements, None] * ways.products[after[elements]]
    place, onward = np.nonzero(products)
    elements = elements[place]
    return before[elements], products[place, onward], np.full(len(place), index), elements, onward


def _best(ways: list[tuple[np.ndarray, ...]], size: int, count: int) -> Ways:
    """The best of the ways that begin at a node, unit by unit."""
    units, *columns = (np.concatenate(column) for column in zip(*ways, strict=True))
    leaders, rank = _leaders(units, columns[0], count)
    best = Ways(np.zeros((size, count)), *np.zeros((3, size, count), int))
    for table, column in zip(best, columns, strict=True):
        table[units[leaders], rank] = column[leaders]
    return best


def _leaders(groups: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """In each group the indices of the `count` largest absolute values, and their ranks."""
    order = np.lexsort((-np.abs(values), groups))
    ordered = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank < count], rank[rank < count]


def _route(edges: Sequence[Edge], ways: dict[int, Ways], start: int, end: int, way: int) -> Route:
    """The way number `way` from the start's only unit, step by step."""
    product, node, unit = float(ways[start].products[0, way]), start, 0
    taken: list[tuple[int, int, float]] = []
    while node != end:
        edge, element, way = (int(column[unit, way]) for column in ways[node][1:])
        factors = edges[edge].factors
        node, unit = edges[edge].after, int(factors.after[element])
        taken.append((edge, unit, float(factors.values[element])))
    return Route(product, *zip(*taken, strict=True))
