"""Two processes learn what one learns: gradients, trainings, restarts, sharded students. One launch serves all tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_generators import VARIANTS, course, weights_of
from two_processes import KINDS, SCENARIOS

from limbeck.engine.processes import World


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A function from a scenario to what each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    source = str(Path(__file__).parents[2] / "src")
    script, running = str(Path(__file__).with_name("two_processes.py")), []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": source, "GLOO_SOCKET_IFNAME": "lo"}
        log = (folder / f"log-{rank}").open("w")
        running.append(
            subprocess.Popen(
                [sys.executable, script, str(folder)], env=os.environ | shared | own, stderr=log, stdout=log
            )
        )
    try:
        codes = [process.wait(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()
    logs = "\n".join((folder / f"log-{rank}").read_text()[-3000:] for rank in "01")
    assert codes == [0, 0], logs
    return lambda name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function from a scenario to what this process finds alone."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = SCENARIOS[name](World(), tmp_path_factory.mktemp(name))
        return made[name]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_processes_or_pieces(kind, two, alone):
    first, second = two("division")
    expected = alone("division")
    for name in [name for name in expected if name.startswith(f"{kind}/")]:
        _, count, _, *what = name.split("/")
        reference = expected["/".join([kind, count, "1 pieces", *what])]
        for found in (expected[name], first[name], second[name]):
            torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_the_rows_are_ragged_enough_to_tell(alone):
    """A mean of the two processes' means is another number, so that equality above proves something."""
    assert not torch.allclose(
        alone("division")["a column/13 rows/1 pieces/values"], alone("division")["a column/3 rows/1 pieces/values"]
    )


@pytest.mark.parametrize("name", ["whole", "cut", "surgery", "average"])
def test_trainings_end_in_the_same_weights(name, two, alone):
    first, second = two("training")
    for key, expected in alone("training").items():
        if key.startswith(f"{name}/"):
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], expected, rtol=2e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_two_processes_stop_together_and_go_on_bit_for_bit(two):
    for found in two("restart"):
        assert all(float(same) == 1 for same in found.values()), found


@pytest.mark.parametrize("name", ["whole", "cut", "sgd", "again"])
def test_a_sharded_student_learns_what_a_whole_one_does(name, two, alone):
    first, second = two("sharded")
    for key, expected in alone("sharded").items():
        if key.startswith(f"{name}/"):
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], expected, rtol=5e-4, atol=5e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_a_sharded_run_is_continued_bit_for_bit(two):
    for found in two("sharded"):
        for key in [key for key in found if key.startswith("whole/")]:
            assert torch.equal(found[key], found[key.replace("whole", "again")]), key


@pytest.mark.parametrize("name", ["apart", "tied", "cut", "twice", "adapters"])
def test_a_sharded_language_model_learns_what_a_whole_one_does(name, two, alone):
    """The fused losses read the head outside the forward pass, where each process holds a part of it only."""
    first, second = two("language")
    keys = [key for key in alone("language") if key.startswith(f"{name}/")]
    assert keys
    for key in keys:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(
            first[key], alone("language")[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_language_models_learn_enough_to_tell(alone):
    sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
    from small_models import llama

    moved = {key: t for key, t in alone("language").items() if key.startswith("apart/student.")}
    before = llama(1).state_dict()
    assert all((t - before[key.removeprefix("apart/student.")]).abs().max() > 1e-2 for key, t in moved.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_networks_of_a_generator_learn_in_two_processes_what_they_learn_in_one(name, two, alone):
    """Student, teacher, critic with its head, and slow copies: plain, spread, in pieces, computed twice; in fp64."""
    first, second = two("generation")
    keys = [key for key in alone("generation") if key.startswith(f"{name}/")]
    assert keys
    for key in keys:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(
            first[key], alone("generation")[key], rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_pieces_and_spreading_are_no_part_of_the_mathematics(alone):
    found = alone("generation")
    for key in [key for key in found if key.startswith("dmd2/method.")]:
        for other in ("dmd2 in pieces", "dmd2 spread, in pieces, twice"):
            torch.testing.assert_close(found[key.replace("dmd2", other)], found[key], rtol=1e-9, atol=1e-11)


def test_a_spread_generator_is_continued_bit_for_bit(two):
    for found in two("generation"):
        for key in [key for key in found if key.startswith("dmd2 spread/")]:
            assert torch.equal(found[key], found[key.replace("dmd2 spread", "again")]), key


@pytest.mark.parametrize("name", ["dmd2", "consistency"])
def test_generators_learn_enough_to_tell(name, alone):
    begun = course(name, World())
    begun._settle(next(begun._stages()), None)
    moved = [
        (alone("generation")[f"{name}/{key}"] - t).abs().max() for key, t in weights_of(begun).items() if t.numel()
    ]
    assert max(moved) > 1e-2
    assert sum(m > 1e-3 for m in moved) > len(moved) / 2
