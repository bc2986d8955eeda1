"""Where JAX runs: in a process of its own, as it can be settled only once."""

import os
import subprocess
import sys

import pytest

from bpresearch import platform


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"platform": "quantum"}, "--platform=quantum is not one of cpu, gpu, tpu"),
        ({"precision": "float16"}, "--precision=float16 is not one of"),
    ],
)
def test_unknown_names_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        platform.start(**arguments)


def in_a_process(text, **environment):
    code = f"from bpresearch import platform\nimport jax, jax.numpy as jnp\n{text}"
    environment = {**os.environ, **environment}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_the_cpu_shows_the_devices_asked_for_and_the_precision():
    code = "platform.start('cpu', 'float64', 3); print(len(jax.devices()), jnp.ones(1).dtype)"
    assert in_a_process(code) == ["3", "float64"]
    code = "platform.start('cpu'); print(len(jax.devices()), jnp.ones(1).dtype)"
    assert in_a_process(code) == [str(platform.available_cores()), "float32"]


def test_a_platform_that_is_not_there_is_named_with_what_is():
    code = "try: platform.start('tpu')\nexcept ValueError as error: print(error)"
    assert " ".join(in_a_process(code)) == "--platform=tpu: this machine has cpu"


def test_programs_give_the_same_bits_in_every_process_unless_xla_is_told_otherwise():
    code = "import os; platform.start('cpu'); print(jax.jit(jnp.add)(1, 1), os.environ['XLA_FLAGS'])"
    ours = "--xla_cpu_multi_thread_eigen=false --xla_gpu_deterministic_ops=true"
    assert in_a_process(code, XLA_FLAGS="") == ["2", *ours.split()]
    mine = ours.replace("true", "false")
    assert in_a_process(code, XLA_FLAGS=mine) == ["2", *mine.split()]
