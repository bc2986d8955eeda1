"""Settings of the whole test suite and of the package's doctests."""

import os
from functools import partial

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import beartype
import jaxtyping
from jax.extend import source_info_util

# From here on, every function of the package checks its annotations, shapes included, at each call.
jaxtyping.install_import_hook("bpresearch", "beartype.beartype")
for checker in (os.path.dirname(jaxtyping.__file__), os.path.dirname(beartype.__file__), "<@beartype"):
    source_info_util.register_exclusion(checker)  # its frames are in between ours, and no user's

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # sweeps spread their runs over devices

settings.register_profile(
    "bpresearch",
    deadline=None,  # the first example of a shape compiles
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    # Compiling makes examples slow; `float64` is the same for every example.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("bpresearch")


COMPILED = "compiled programs"
_seconds: list[float] = []  # of every program that was compiled, or loaded, in this process


def _note_compilation(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _seconds.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


@pytest.fixture(autouse=True)
def compilations_are_counted(record_property):
    """Most of the suite's time is compilation: its end says how much, and by which tests."""
    before = len(_seconds)
    yield
    record_property(COMPILED, (len(_seconds) - before, sum(_seconds[before:])))


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ended = [report for report in reports if getattr(report, "when", "") == "teardown"]
    noted = [(dict(report.user_properties).get(COMPILED, (0, 0.0)), report.nodeid) for report in ended]
    seconds, programs = sum(seconds for (_, seconds), _ in noted), sum(n for (n, _), _ in noted)
    if not programs:
        return
    terminalreporter.section("compilation")
    terminalreporter.write_line(f"{programs} programs in {seconds:.0f} s; most of it:")
    for (n, seconds), name in sorted(noted, key=lambda of: of[0][1], reverse=True)[:10]:
        if n:
            terminalreporter.write_line(f"{seconds:6.1f} s {n:4} programs  {name}")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the long checks too (marked `full`)")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        long = pytest.mark.skip(reason="a long check: scripts/test --full")
        for item in items:
            if "full" in item.keywords:
                item.add_marker(long)


@pytest.fixture
def float64():
    """Double precision for one test; without it, a test sees JAX's default, single precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def double_precision_ends_with_a_test():
    """No test, and nothing that it calls, leaves double precision on for the next one."""
    yield
    assert not jax.config.jax_enable_x64


@pytest.fixture(autouse=True)
def names_in_examples(request):
    """What the examples in docstrings may use without importing it."""
    if isinstance(request.node, pytest.DoctestItem):
        import bpresearch

        names = {
            "bp": bpresearch,
            "partial": partial,
            "jax": jax,
            "jnp": jnp,
            "nnx": nnx,
            "np": np,
            "optax": optax,
        }
        request.node.dtest.globs |= names


@pytest.fixture(autouse=True)
def rules_of_a_test_end_with_it(monkeypatch):
    """What a test or an example registers is forgotten after it, compiled programs and all."""
    from bpresearch.chainrule import primitives, registry

    monkeypatch.setattr(registry, "_rules", registry.registered())
    before, tables = registry.version(), [(kept, dict(kept)) for kept in vars(primitives.table).values()]
    yield
    for kept, entries in tables:
        kept.clear()
        kept.update(entries)
    if registry.version() != before:
        registry.changed()
