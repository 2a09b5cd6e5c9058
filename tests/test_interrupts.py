"""A request to stop is kept until a step asks for it, passed on where none does, and a second one is not held back."""

import signal

import pytest

from limbeck.interrupts import Interrupts


@pytest.fixture
def heard():
    """What the handlers of before hear."""
    found = []
    before = {n: signal.signal(n, lambda number, frame: found.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_request_is_told_at_the_next_boundary(heard, tmp_path):
    def stopped():
        with Interrupts() as interrupts:
            interrupts.folder = tmp_path
            assert interrupts.asked() is None
            signal.raise_signal(signal.SIGTERM)
            assert str(tmp_path) in str(interrupts.asked())
            raise RuntimeError("as if stopped")

    with pytest.raises(RuntimeError, match="as if stopped"):
        stopped()
    assert heard == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_after_the_last_step_is_passed_on(heard, number):
    with Interrupts():
        signal.raise_signal(number)
        assert heard == []
    assert heard == [number]


def test_the_second_request_is_not_held_back(heard):
    with Interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT]
        heard.clear()


def test_without_a_request_nothing_is_passed_on(heard):
    with Interrupts():
        pass
    assert heard == []
