"""The allocator's thresholds: raised on glibc, left alone when told so."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, numpy as np
from napari_wbc.allocator import keep_blocks
raised = keep_blocks()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(1 << 24)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(raised, faults())
"""


def run(switch):
    environment = os.environ | {"NAPARI_WBC_MALLOC": switch}
    out = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    raised, faults = out.stdout.split()
    return raised == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")
def test_blocks_are_used_again_unless_told_otherwise():
    raised, few = run("1")
    left_alone, many = run("0")
    assert raised
    assert not left_alone
    assert few < many / 2 or many < 500  # huge pages make both few
