"""The fixture `assert_gradients`, which pytest finds through this package's entry point `pytest11`."""

import pytest


@pytest.fixture(scope="session")
def assert_gradients():
    """`assert_gradients(f, *args, reference=None, ...)`: see `bpresearch.verify.assert_gradients`."""
    from bpresearch.verify import assert_gradients  # imported when used: JAX takes a second to load

    return assert_gradients
