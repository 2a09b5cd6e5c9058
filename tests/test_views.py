import json

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.views import Apply, ModalityDropout, Noise, Subset, View

IDS = torch.tensor([3, 1, 4, 15])


def batch(training: bool = False) -> dict:
    columns = {"id": IDS, "image": torch.ones(4, 1, 2, 2), "sound": torch.ones(4, 3), "label": torch.zeros(4)}
    return columns | ({"view_seed": seeds_for(IDS, 0, 0)} if training else {})


def test_keys_go_by_position_and_by_name():
    data = batch()
    args, kwargs = View("sound", "image", pixels="image")(data)
    assert [id(x) for x in args] == [id(data["sound"]), id(data["image"])]
    assert list(kwargs) == ["pixels"]
    assert kwargs["pixels"] is data["image"]


@pytest.mark.parametrize(
    ("view", "spelling"),
    [
        (View("image"), "image"),
        (View("image", "sound"), ["image", "sound"]),
        (View(pixels="image"), {"named": {"pixels": "image"}}),
        (View("label", privileged=True), {"keys": ["label"], "privileged": True}),
        (
            View("image", transforms={"use": "noise", "std": 0.1}),
            {"keys": ["image"], "transforms": [{"use": "noise", "std": 0.1, "keys": None, "salt": 0, "always": False}]},
        ),
    ],
)
def test_the_spelling_is_the_shortest_and_read_back_equal(view, spelling):
    assert view.spec() == spelling
    assert View.of(json.loads(json.dumps(spelling))) == view
    assert hash(View.of(spelling)) == hash(view)
    assert View.of(view) is view


def test_views_differ_in_what_they_show():
    views = [
        View("a"),
        View("b"),
        View("a", "b"),
        View(x="a"),
        View("a", privileged=True),
        View("a", transforms=["modality-dropout"]),
    ]
    assert all((x == y) == (x is y) for x in views for y in views)
    assert repr(views[4]) == "View('a', privileged=True)"
    assert eval(repr(View("a", x="b", transforms=[Subset("a")]))) == View("a", x="b", transforms=[Subset("a")])


def test_a_missing_column_is_answered_with_those_there_are():
    with pytest.raises(RecipeError) as caught:
        View("image", "audio").check(["image", "label", "sound"], whose="teacher", source="manifest.csv")
    assert str(caught.value) == (
        "view 'audio' of the teacher: the batch has image, label, sound (columns of manifest.csv). "
        "Rename it: teacher.view=[image, sound]"
    )


@pytest.mark.parametrize(
    ("view", "advice"),
    [
        (View("audio"), r"Rename it: student\.view=sound$"),
        (
            View("imag", "audio"),
            r"^view 'imag', 'audio' of the student: .*Rename them: student\.view=\[image, sound\]$",
        ),
        (View("image", wave="audio"), r"Rename it: student\.view\.named\.wave=sound$"),
        (View("audio", privileged=True), r"Rename it: student\.view\.keys=sound$"),
        (View("audio", wave="audio"), r"Rename it: student\.view\.keys=sound student\.view\.named\.wave=sound$"),
        (View("xyz"), r"Name columns that are there: student\.view=\[\.\.\.\]$"),
    ],
)
def test_the_advice_can_be_typed(view, advice):
    with pytest.raises(RecipeError, match=advice):
        view.check(["image", "label", "sound"], whose="student")


def test_the_advised_name_is_one_that_the_view_does_not_use_already():
    with pytest.raises(RecipeError, match=r"view=\[image, image2\]$"):
        View("image", "image3").check(["image", "image2"])


def test_a_batch_without_the_column_is_refused_when_called():
    with pytest.raises(RecipeError) as caught:
        View("audio")(batch(training=True))
    assert str(caught.value) == "view 'audio': the batch has image, sound, label. Rename it: view=sound"
    View("image").check(["image"])


def test_random_transforms_act_in_training_only():
    view = View("image", transforms=[Noise(std=1)])
    data = batch(training=True)
    (seen,), _ = view(data)
    assert not torch.equal(seen, data["image"])
    assert data["image"].eq(1).all()
    assert torch.equal(view(data)[0][0], seen)
    assert view(batch())[0][0].eq(1).all()


def test_noise_that_belongs_to_the_input_is_there_in_evaluation_keyed_by_id():
    view = View("image", transforms=[Noise(std=1, always=True)])
    (seen,), _ = view(batch())
    assert seen.ne(1).all()
    turned = [2, 0, 3, 1]
    (again,), _ = view({key: x[turned] for key, x in batch().items()})
    assert torch.equal(again, seen[turned])
    (trained,), _ = view(batch(training=True))
    assert not torch.equal(trained, seen)
    with pytest.raises(RecipeError, match="the batch has no 'id'"):
        view({"image": torch.ones(4, 1, 2, 2)})


def test_teacher_and_student_share_a_draw_by_salt_whatever_else_they_see():
    teacher = View("sound", "image", transforms=[ModalityDropout(salt=9), Noise(std=1, keys="image")])
    student = View("image", transforms=[Noise(std=1)])
    other = View("image", transforms=[Noise(std=1, salt=1)])
    data = batch(training=True)
    plain = View("sound", "image", transforms=[Noise(std=1, keys="image")])
    assert torch.equal(plain(data)[0][1], student(data)[0][0])
    assert not torch.equal(other(data)[0][0], student(data)[0][0])
    assert teacher(data)[0][1].shape == (4, 1, 2, 2)


def test_transforms_act_in_order():
    double, add = Apply(lambda x: 2 * x, "image", always=True), Apply(lambda x: x + 1, "image", always=True)
    assert View("image", transforms=[double, add])(batch())[0][0].unique().tolist() == [3.0]
    assert View("image", transforms=[add, double])(batch())[0][0].unique().tolist() == [4.0]


def test_a_column_that_a_transform_makes_can_be_shown():
    view = View("image", "sound", present="kept", transforms=[ModalityDropout(mask="kept")])
    assert view.columns == ("image", "sound")
    view.check(["image", "sound"])
    (image, sound), kwargs = view(batch(training=True))
    assert torch.equal(kwargs["present"], torch.stack([image[:, 0, 0, 0] == 1, sound[:, 0] == 1], 1))
    assert View.of(view.spec()) == view


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"keys": "image", "transfroms": []}, r"unknown key 'transfroms' of a view\. Did you mean 'transforms'\?"),
        ({"keys": ["image"], "transforms": ["nois"]}, r"Did you mean 'noise'\?"),
        ({"keys": ["image"], "named": ["image"]}, "needed is {parameter of forward: column}"),
        ({"keys": ["image"], "named": {"transforms": "image"}}, "rename that parameter of forward"),
        (3, "view 3: needed is a column, a list of columns"),
        ([], "a view shows at least one column"),
        (["image", 3], "a view names columns, and 3 is a int"),
        (
            {"keys": ["image"], "transforms": [{"use": "noise", "std": 1, "keys": ["imag"]}]},
            r"transform 'noise' of a view names 'imag', which the view lacks\. Did you mean 'image'\?",
        ),
    ],
)
def test_mistakes_are_answered_in_sentences(given, sentence):
    with pytest.raises(RecipeError, match=sentence):
        View.of(given)
