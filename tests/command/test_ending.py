"""How a process of several ends."""

import subprocess
import sys

LEAVES = """
import os, signal, threading, time
import jax
from bpresearch.command import ending

def shutdown():  # JAX's runtime aborts from a thread of its own, as soon as another process is lost
    threading.Thread(target=os.abort).start()
    time.sleep(60)

jax.distributed.shutdown = shutdown
ending.leave(2)
"""


def test_a_process_that_fails_leaves_with_its_code_although_the_runtime_aborts_meanwhile():
    found = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (2, "")
