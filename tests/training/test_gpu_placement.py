"""Where tensors lie in a run on a GPU, shown without one: see `pretend_gpu`."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.processes.launching import ENVIRONMENT, ROOT

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(ROOT / "tests/processes/gpu.py"), str(folder)]
    run = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "done.json").read_text())


def test_every_tensor_of_a_run_lies_where_its_operation_is(done):
    assert len(done) == 9
    for name, case in done.items():
        assert case["error"] is None, f"{name}: {case['error'][-3000:]}"


def test_a_run_on_the_device_is_the_run_on_the_cpu(done):
    for name, case in done.items():
        assert np.hstack(case["here"]).size > 2, name
        np.testing.assert_allclose(np.hstack(case["there"]), np.hstack(case["here"]), rtol=1e-4, err_msg=name)
