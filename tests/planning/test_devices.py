"""What --on means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.planning import devices


@given(count=st.integers(1, 64), size=st.integers(1, 500))
def test_an_amount_of_memory_is_in_units_of_a_thousand(count, size):
    device = devices.parse(f"{count}x{size}GB")
    assert (device.count, device.bytes, device.here, device.cuda) == (count, size * 1e9, False, True)
    assert devices.parse(f"{size} gib").bytes == size * 2**30


@pytest.mark.parametrize("name", devices.KNOWN)
def test_known_devices_by_name_and_several_of_them(name):
    one, eight = devices.parse(name.upper()), devices.parse(f"8x{name}")
    assert one.bytes == eight.bytes == devices.KNOWN[name] * 1e9
    assert (one.count, eight.count) == (1, 8)


@pytest.mark.parametrize("on", ["h10", "24", "0x24GB", "0GB", "x24GB", ""])
def test_what_is_no_device_is_refused_with_the_nearest(on):
    with pytest.raises(RecipeError):
        devices.parse(on)
    with pytest.raises(RecipeError, match="h100"):
        devices.parse("h10")


def test_the_peak_is_never_below_what_is_there_now():
    devices.forget_peak()
    before = devices.peak()
    held = bytearray(64 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    slack = 2 * 2**20  # the system counts pages in lots
    assert devices.peak() + slack >= max(devices.resident(), before + 64 * 2**20)
    del held
    assert devices.this_machine().bytes > devices.resident()
