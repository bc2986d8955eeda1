"""Rules for the primitives of `jax.lax`, a file for each family."""

from importlib import import_module

FAMILIES = (
    "elementwise",
    "identities",
    "contractions",
    "shapes",
    "indexing",
    "reductions",
    "windows",
    "sorting",
    "cumulative",
    "complex",
    "fourier",
    "linear_algebra",
    "eigenvalues",
    "special",
    "random",
    "collectives",
    "opaque",
    "hijax",
    "inner_calls",
    "branches",
    "loops",
    "sharding",
)
"""The files; importing one registers its rules."""

for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")
