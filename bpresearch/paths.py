"""How leaves of trees are named in reports, flags and messages."""

from collections.abc import Hashable


def format_path(path: tuple[Hashable, ...]) -> str:
    """Writes a path as the reports and error messages do: `('layers', 0, 'kernel')` as `layers.0.kernel`."""
    return ".".join(str(name) for name in path)
