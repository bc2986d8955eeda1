"""Sums over paths and the largest of them, against every path of a small graph."""

import numpy as np
import pytest

from bpresearch.theory import routes
from bpresearch.theory.slopes import from_dense

RNG = np.random.default_rng(0)
SIZES = [1, 3, 2, 4, 1]
PAIRS = [(0, 1), (0, 2), (1, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (0, 3)]
"""Of nodes: some are joined twice, some ways are longer than others."""
MATRICES = [
    RNG.normal(size=(SIZES[b], SIZES[a])) * (RNG.random((SIZES[b], SIZES[a])) > 0.3) for a, b in PAIRS
]
EDGES = [routes.Edge(a, b, from_dense(matrix)) for (a, b), matrix in zip(PAIRS, MATRICES, strict=True)]


def every_path(node=0, unit=0):
    """Product, edges and units of all ways from a unit to the end."""
    if node == 4:
        return [(1.0, (), ())]
    return [
        (matrix[after, unit] * product, (edge, *edges), (after, *units))
        for edge, ((a, b), matrix) in enumerate(zip(PAIRS, MATRICES, strict=True))
        if a == node
        for after in np.nonzero(matrix[:, unit])[0].tolist()
        for product, edges, units in every_path(b, after)
    ]


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_the_largest_paths_are_those_of_the_whole_list(count):
    expected = sorted(every_path(), key=lambda path: -abs(path[0]))
    found = routes.largest(EDGES, 0, 4, count)
    assert len(found) == min(count, len(expected))
    for route, (product, edges, units) in zip(found, expected, strict=False):
        assert (route.edges, route.units) == (edges, units)
        assert route.product == pytest.approx(product) == pytest.approx(np.prod(route.factors))


def test_the_total_is_the_sum_of_the_whole_list():
    assert routes.total(EDGES, 0, 4) == pytest.approx(sum(product for product, *_ in every_path()))


def test_live_edges_are_those_of_the_whole_list():
    silent = [edge._replace(factors=edge.factors._replace(values=0 * edge.factors.values)) for edge in EDGES]
    for kept in ({*range(9)}, {0, 2, 6, 8}, {1, 5, 7, 2}, {0, 4}):
        edges = [edge if i in kept else silent[i] for i, edge in enumerate(EDGES)]
        expected = {edge for _, edges, _ in every_path() if kept.issuperset(edges) for edge in edges}
        assert routes.live(edges, 0, 4) == expected


def test_without_a_way_there_is_nothing():
    apart = [edge for edge in EDGES if edge.after != 4]
    assert routes.live(apart, 0, 4) == set()
    assert routes.total(apart, 0, 4) == 0 and routes.largest(apart, 0, 4, 3) == []
