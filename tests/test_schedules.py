import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.dataclasses import dataclass

from limbeck.errors import RecipeError
from limbeck.schedules import Constant, Cosine, Linear, Piecewise, Scalar, Schedule, Step, Warmup, to_schedule


def at(fraction: float = 0.0, epoch: int = 0) -> SimpleNamespace:
    return SimpleNamespace(step=int(100 * fraction), steps=100, epoch=epoch, epochs=10, fraction=fraction)


@dataclass(frozen=True)
class Sawtooth(Schedule):
    teeth: int = 4

    def __call__(self, progress):
        return progress.fraction * self.teeth % 1.0


EVERY = [
    Constant(0.3),
    Linear(),
    Linear(2, 3, begin=0.1, until=0.4),
    Cosine(start=1, end=0.1),
    Step(start=2, factor=0.5, every=30, at_zero=True),
    Piecewise([(0, 1), (0.5, 0.1)], interpolate=True),
    Warmup(0.2),
    Warmup(0.2, then={"use": "cosine", "end": 0.5}),
    Sawtooth(3),
]


def test_ramps_at_their_ends_and_in_the_middle():
    assert [Linear(1, 0)(at(f)) for f in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [Linear(4, 8, begin=0.5, until=0.75)(at(f)) for f in (0, 0.5, 0.625, 0.75, 1)] == [4, 4, 6, 8, 8]
    assert Cosine(1, 0)(at(0)) == 1
    assert Cosine(1, 0)(at(0.5)) == pytest.approx(0.5)
    assert Cosine(1, 0)(at(0.25)) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert Cosine(3, 2)(at(1)) == 2


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1))
@settings(deadline=None)
def test_ramps_stay_between_their_ends_and_run_backwards(start, end, fraction):
    low, high = sorted((start, end))
    for kind in (Linear, Cosine):
        assert low - 1e-12 <= kind(start, end)(at(fraction)) <= high + 1e-12
        assert kind(start, end)(at(fraction)) == pytest.approx(kind(end, start)(at(1 - fraction)), abs=1e-9)


@given(st.integers(1, 7), st.floats(0.1, 0.9), st.booleans())
@settings(deadline=None)
def test_step_is_the_loop_it_describes(every, factor, at_zero):
    weight, schedule = 2.0, Step(2.0, factor, every, at_zero)
    for epoch in range(30):
        assert schedule(at(epoch=epoch)) == pytest.approx(weight)
        if (epoch if at_zero else epoch + 1) % every == 0:
            weight *= factor


def test_step_with_the_figures_of_the_released_code_of_mst_distill():
    # w_kl *= 0.5 after each epoch with epoch % 30 == 0
    weight = Step(1.0, 0.5, 30, at_zero=True)
    assert [weight(at(epoch=e)) for e in (0, 1, 30, 31, 60, 61, 99)] == [1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.0625]
    assert [Step(1.0, 0.5, 30)(at(epoch=e)) for e in (0, 29, 30, 59, 60)] == [1, 1, 0.5, 0.5, 0.25]


def test_piecewise_holds_or_joins_its_points():
    points = [(0.25, 1.0), (0.5, 3.0)]
    fractions = (0, 0.25, 0.375, 0.5, 1)
    assert [Piecewise(points)(at(f)) for f in fractions] == [1, 1, 1, 3, 3]
    assert [Piecewise(points, interpolate=True)(at(f)) for f in fractions] == [1, 1, 2, 3, 3]


def test_warmup_multiplies_what_follows():
    assert [Warmup(0.5, then=4)(at(f)) for f in (0, 0.25, 0.5, 1)] == [0, 2, 4, 4]
    then = Linear(1, 0)
    assert Warmup(0.5, then)(at(0.25)) == 0.5 * then(at(0.25))
    assert Warmup(0.5, then)(at(0.75)) == then(at(0.75))


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_a_schedule_is_spelled_as_plain_data_and_read_back_equal(schedule):
    spelling = json.loads(json.dumps(schedule.spec()))
    again = to_schedule(spelling)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again.spec() == spelling
    assert [again(at(f, int(10 * f))) for f in (0, 0.3, 1)] == [schedule(at(f, int(10 * f))) for f in (0, 0.3, 1)]


def test_numbers_names_and_mappings_become_schedules():
    assert to_schedule(1) == Constant(1.0) == 1
    assert to_schedule(1).spec() == 1.0
    assert to_schedule("cosine") == Cosine(1.0, 0.0)
    assert to_schedule({"use": "cosine", "start": 1, "end": 0}) == to_schedule("cosine")
    assert to_schedule("cosine").spec() == {"use": "cosine", "start": 1.0, "end": 0.0, "begin": 0.0, "until": 1.0}
    assert to_schedule({"use": "warmup"}).then(at()) == 1.0
    assert Linear() != Cosine()


class Options(BaseModel):
    weight: Scalar = 1.0
    temperature: Scalar = 4.0


def test_an_option_annotated_scalar_takes_any_of_them_and_writes_plain_data():
    assert Options().weight(at()) == 1.0
    options = Options(weight={"use": "linear", "start": 2}, temperature=Cosine(4, 1))
    assert options.weight(at(0.5)) == 1.0
    written = options.model_dump(mode="json")
    assert written["weight"] == {"use": "linear", "start": 2.0, "end": 0.0, "begin": 0.0, "until": 1.0}
    assert Options(**written) == options
    assert Options(weight=1) == Options(weight=1.0) == Options()
    assert Options(weight=2).model_dump(exclude_defaults=True) == {"weight": 2.0}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("cosin", r"unknown schedule 'cosin'\. Did you mean 'cosine'\?"),
        ({"use": "cosine", "strat": 1}, r"unknown key 'strat' of schedule 'cosine'\. Did you mean 'start'\?"),
        ({"use": "cosine", "start": "hot"}, r"schedule 'cosine': start: .*valid number.*given was 'hot'"),
        ({"use": "step", "every": 0}, r"schedule 'step': every: .*greater than or equal to 1, given was 0"),
        ({"use": "linear", "begin": 0.5, "until": 0.5}, r"begin=0\.5 must lie before until=0\.5"),
        ({"use": "piecewise", "points": [[0.5, 1], [0.1, 2]]}, r"must rise, and they are 0\.5, 0\.1"),
        ({"use": "piecewise", "points": []}, "points: "),
        ({"use": "piecewise"}, "needs the option 'points'"),
        ({"use": "warmup", "then": "cosin"}, "Did you mean 'cosine'"),
        ({"start": 1}, r"needed is a name, or a name with options: \{use: constant"),
        (True, "schedule True: needed is a name"),
        (None, "schedule None: needed is a name"),
        (math.nan, "needed is a finite number"),
    ],
)
def test_mistakes_are_answered_in_sentences(given, sentence):
    with pytest.raises(RecipeError, match=sentence):
        to_schedule(given)


def test_python_checks_what_recipes_check():
    with pytest.raises(ValueError, match="valid number"):
        Cosine(start="hot")
    with pytest.raises(ValueError, match="must lie before"):
        Linear(begin=1.0)
