"""Other checkers, asked about the same rule."""

import pytest

from bpresearch.verify.detection import cases
from bpresearch.verify.detection.peers import PEERS, Peers

CHECKERS = [name for name, available in PEERS.items() if available()]


@pytest.mark.parametrize("name", [pytest.param("ctc_loss", marks=pytest.mark.full), "Linear"])
def test_each_checker_in_turn_passes_the_right_rule_and_finds_a_gross_fault(name):
    """`ctc_loss` loops, and what JAX traced of the loop in float32 does not do in float64."""
    known, _ = cases.cases()
    (case,) = (case for case in known if case.name.split(".")[-1] == name)
    faults = cases.faults_of(case, each=1)
    peers = Peers(case, [faults["factor_doubled"]])
    for checker in CHECKERS:
        assert peers.passes(checker, -1), checker
        assert not peers.passes(checker, 0), checker
