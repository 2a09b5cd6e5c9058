import dataclasses
from typing import Annotated

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from limbeck.choices import choose, plain, spelled
from limbeck.errors import RecipeError


class Drink:
    pass


@dataclass(frozen=True)
class Tea(Drink):
    minutes: Annotated[float, Field(gt=0)] = 3.0
    with_milk: bool = False


@dataclass(frozen=True)
class Juice(Drink):
    fruits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Home(Drink):
    made: str


KNOWN = {"tea": Tea, "apple-juice": Juice}


def drink(given):
    return choose(given, KNOWN, Drink, "drink")


def test_an_object_a_name_and_a_mapping_mean_the_same():
    assert drink("tea") == drink({"use": "tea"}) == drink(Tea()) == Tea(minutes=3.0)
    assert drink({"use": "tea", "minutes": 4}) == Tea(minutes=4.0)
    assert drink({"use": "apple_juice", "fruits": ["apple"]}) == Juice(fruits=("apple",))


@pytest.mark.parametrize("chosen", [Tea(), Tea(minutes=5, with_milk=True), Juice(fruits=("a", "b")), Home("mint")])
def test_its_spelling_builds_an_equal_one_and_holds_every_default(chosen):
    spelling = spelled(chosen, KNOWN)
    assert set(spelling) == {"use", *(field.name for field in dataclasses.fields(chosen))}
    assert drink(spelling) == chosen


def test_plain_data_has_no_tuples_left():
    assert plain({1: (1, [2, ("a",)])}) == {"1": [1, [2, ["a"]]]}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("te", r"unknown drink 'te'\. Did you mean 'tea'\?"),
        ({"use": "tea", "minute": 4}, r"unknown key 'minute' of drink 'tea'\. Did you mean 'minutes'\?"),
        ({"use": "tea", "minutes": "hot"}, r"drink 'tea': minutes: .*valid number.*given was 'hot'\."),
        ({"use": "tea", "minutes": -1}, r"drink 'tea': minutes: .*greater than 0, given was -1\."),
        ("apple-juice", r"drink 'apple-juice' needs the option 'fruits'\."),
        (f"{__name__}:Home", r"drink 'test_choices:Home': .*missing.*'made'"),
        (f"{__name__}:KNOWN", r"needed is a dataclass derived from test_choices\.Drink"),
        (
            {"minutes": 3},
            r"needed is a name, or a name with options: \{use: tea, \.\.\.\}\. There is: tea, apple-juice\.",
        ),
        (3, "drink 3: needed is a name"),
    ],
)
def test_mistakes_are_answered_in_sentences(given, sentence):
    with pytest.raises(RecipeError, match=sentence):
        drink(given)
