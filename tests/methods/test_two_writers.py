"""Two processes write and remember what one does: the same texts, the same kept ones, the same student."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_writers import METHODS, trained

from limbeck.engine.processes import World


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A function from a method to what each of two processes ended with; one launch serves all."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    source, script = str(Path(__file__).parents[2] / "src"), str(Path(__file__).with_name("two_writers.py"))
    running = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": source, "GLOO_SOCKET_IFNAME": "lo"}
        with (folder / f"log-{rank}").open("w") as log:
            command = [sys.executable, script, str(folder)]
            running.append(subprocess.Popen(command, env=os.environ | shared | own, stderr=log, stdout=log))
    try:
        codes = [process.wait(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()
    logs = "\n".join((folder / f"log-{rank}").read_text()[-3000:] for rank in "01")
    assert codes == [0, 0], logs
    return lambda name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_as_one(name, two):
    expected, ranks = trained(name, World()), two(name)
    for found in ranks:
        assert found.keys() == expected.keys()
        for entry, value in expected.items():
            torch.testing.assert_close(found[entry], value, rtol=1e-4, atol=1e-5, msg=lambda m, e=entry: f"{e}: {m}")
