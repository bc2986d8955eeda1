"""How good the verifier is: planted faults, cases around every rule, random models, other checkers."""
