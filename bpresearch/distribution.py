"""An axis that is a distribution and not a list of values."""

from dataclasses import dataclass


class NoDistributionError(ValueError):
    """The ends of a distribution do not make one."""


@dataclass(frozen=True)
class Uniform:
    """Numbers between two ends, both of which can be drawn; integers if both ends are.

    Attributes:
        low, high: the ends, low < high.
        log: whether the logarithm is uniform and not the number itself; then low > 0.

    Raises:
        NoDistributionError: low is not below high, or a logarithm of low does not exist.

    >>> str(Uniform(1e-4, 1, log=True))
    'loguniform:0.0001:1'
    """

    low: float | int
    high: float | int
    log: bool = False

    def __post_init__(self):
        if not self.low < self.high:
            raise NoDistributionError(f"the first end, {self.low}, must be below the second, {self.high}")
        if self.log and self.low <= 0:
            raise NoDistributionError(f"the first end, {self.low}, must be above 0")

    def __str__(self) -> str:
        return f"{'log' if self.log else ''}uniform:{self.low}:{self.high}"

    @property
    def ends(self) -> tuple[float | int, float | int]:
        """Both ends."""
        return self.low, self.high
