"""Verification inside a test suite."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from bpresearch.verify.function import function
from bpresearch.verify.report import Report


def assert_gradients(
    f: Callable[..., PyTree], *args: PyTree, undecided: str = "fail", **options: Any
) -> Report:
    """Raises an AssertionError whose message is the report, if the derivative of `f` at `args` is not right.

    With pytest there is a fixture of the same name, so that a test needs no import.

    Args:
        f: what `bpresearch.verify.function` takes, and so are the other arguments.
        args: where to check it.
        undecided: "fail" also raises where no oracle could tell; "allow" lets that pass.
        options: the keywords of `bpresearch.verify.function`.

    Returns:
        The report, for tests that want to know more.

    >>> bp.verify.assert_gradients(jnp.sin, 1.0).passed
    True
    """
    __tracebackhide__ = True  # pytest shows the line of the test, not this one
    if undecided not in ("fail", "allow"):
        raise ValueError(f"undecided {undecided!r} is not 'fail' or 'allow'")
    report = function(f, *args, **options)
    if report.passed or (report.passed is None and undecided == "allow"):
        return report
    said = "wrong" if report.passed is False else "undecided"
    raise AssertionError(f"the derivative of {getattr(f, '__name__', f)!s} is {said}\n\n{report}")
