"""The instruments: bytes counted by hand, time counted once, and nothing left behind."""

import time

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.planning.watching import Alive, Clock, bytes_of, heard

CPU = torch.device("cpu")


def test_alive_counts_what_is_there_at_one_time():
    x = torch.zeros(1000)
    with Alive() as alive:
        first = x + 1
        second = first * 2
        del first
        third = second.view(10, 100)  # the same bytes
        second.add_(1)
        fourth = third + 1
    assert alive.peak == 2 * 4000
    assert alive.now == 2 * 4000
    del second, third
    assert alive.now == 4000
    del fourth
    assert alive.now == 0


def test_alive_sees_the_backward_pass():
    layer, x = nn.Linear(50, 20, bias=False), torch.randn(8, 50)
    with Alive() as alive:
        layer(x).sum().backward()
    assert alive.now == bytes_of([layer.weight.grad]) == 4000
    assert 4000 < alive.peak <= 4000 + 4 * (8 * 20 * 3 + 3)


def test_a_clock_counts_each_moment_once():
    clock = Clock(CPU)
    began = time.perf_counter()
    with clock("outer"):
        time.sleep(0.02)
        with clock("inner"):
            time.sleep(0.03)
        time.sleep(0.01)
    whole = time.perf_counter() - began
    taken = clock.take()
    assert taken["inner"] >= 0.03
    assert taken["outer"] >= 0.03
    assert sum(taken.values()) <= whole
    assert clock.take() == {}


def test_an_actor_is_heard_also_when_it_stops_early_and_is_itself_again():
    student = Student(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), view="x", taps={"hidden": "0"})
    batch, clock = {"x": torch.randn(5, 3)}, Clock(CPU)
    plain = student(batch)["logits"]
    with heard(clock, {0: ("student", student)}):
        assert isinstance(student, Student)
        assert torch.equal(student(batch)["logits"], plain)
        assert set(student(batch, until="hidden")) == {"hidden"}
        with pytest.raises(RecipeError):
            student({"y": batch["x"]})
    assert type(student) is Student
    assert clock.take()["student"] > 0
    student(batch)
    assert clock.take() == {}
