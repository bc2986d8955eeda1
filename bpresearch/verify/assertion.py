"""Verification inside a test suite."""

from collections.abc import Callable
from typing import Any

from bpresearch.verify.check_function import function
from bpresearch.verify.report import Report


def assert_gradients(f: Callable[..., Any], *args: Any, **options: Any) -> Report:
    """Raises an AssertionError whose message is the report, if the derivative of `f` at `args` is wrong.

    With pytest there is a fixture of the same name, so that a test needs no import.

    Args:
        f: what `bpresearch.verify.function` takes, and so are the other arguments.
        args: where to check it.
        options: the keywords of `bpresearch.verify.function`.

    Returns:
        The report, for tests that want to know more.
    """
    __tracebackhide__ = True  # pytest shows the line of the test, not this one
    report = function(f, *args, **options)
    if not report.passed:
        raise AssertionError(f"the derivative of {getattr(f, '__name__', f)!s} is wrong\n\n{report}")
    return report
