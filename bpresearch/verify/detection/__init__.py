"""How good the verifier is: planted faults, cases around every rule, random models, other checkers."""

from bpresearch.verify.detection import mutations as mutations  # which adds its faults to `faults.FAULTS`
