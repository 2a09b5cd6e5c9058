import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, keys, settled, situation

import limbeck
from limbeck.errors import RecipeError
from limbeck.losses.attention import attention_transfer
from limbeck.methods.at import AT


def transferred(method, batch):
    return method.transfer(method.student(batch), method.teacher(batch), batch)


def test_the_loss_is_the_tasks_and_a_thousand_times_the_gap_of_the_maps_over_all_stages():
    where = situation()
    method = AT()
    batch = settled(method, where)
    assert method.pairs == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3)]
    ours, theirs = where.student(batch), where.teacher(batch)
    expected = F.cross_entropy(ours["logits"], batch["label"])
    for name, _ in method.pairs:
        q, p = (F.normalize(x[name].pow(2).mean(1).flatten(1)) for x in (ours, theirs))
        expected = expected + 1000 * (q - p).pow(2).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_nothing_but_the_student_learns():
    method = AT()
    settled(method, situation())
    assert not list(method.parameters())


def test_the_papers_form_is_the_length_of_the_gap():
    where = situation()
    method = AT(form="norm", layers=["layer2"])
    batch = settled(method, where)
    q, p = (F.normalize(x["layer2"].pow(2).mean(1).flatten(1)) for x in (where.student(batch), where.teacher(batch)))
    torch.testing.assert_close(transferred(method, batch).total(), (q - p).norm(dim=1).mean())


def test_it_feels_neither_the_size_nor_the_order_of_the_students_channels():
    where = situation(double=True)
    method = AT(layers=["layer1", "layer2"])
    batch = settled(method, where)
    value = transferred(method, batch).total()
    convolution = where.student.model.layer1.conv  # both layers are homogeneous: a ReLU follows each
    following = where.student.model.layer2.conv
    convolution.weight.data, convolution.bias.data = (
        7 * convolution.weight.data.flip(0),
        7 * convolution.bias.data.flip(0),
    )
    following.weight.data, following.bias.data = following.weight.data.flip(1), 7 * following.bias.data
    torch.testing.assert_close(transferred(method, batch).total(), value)


def test_a_mask_column_counts_positions():
    where = situation()
    method = AT(layers=["layer2"], mask="counts")
    batch = settled(method, where)
    expected = attention_transfer(where.student(batch)["layer2"], where.teacher(batch)["layer2"], mask=batch["counts"])
    torch.testing.assert_close(transferred(method, batch).total(), expected.mean())


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [
        (Pyramid(2), Pyramid(3), None),
        (Former(), Pyramid(4), [["blocks.1", "layer2"]]),
        (Pyramid(2), Former(), [["layer1", "blocks.0"]]),
    ],
)
def test_it_runs_from_python_between_maps_and_tokens(student, teacher, layers, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method={"use": "at", "layers": layers}, out=tmp_path / "run")
    assert '"attention0"' in (run.folder / "log.jsonl").read_text()


def test_layers_without_positions_are_refused_at_setup_with_both_shapes():
    with pytest.raises(
        RecipeError, match=r"student's \[5\] to the teacher's \[9\].*attention transfer compares positions"
    ):
        settled(AT(), situation(Vectors(5), Vectors(9)))
    with pytest.raises(
        RecipeError, match=r"\[7, 6\] to the teacher's \[8, 4, 4\].*nothing says which token lies where"
    ):
        settled(AT(layers=[["blocks.1", "layer2"]]), situation(Former(tokens=7)))
    where = situation()
    where.teacher.shapes["lacking"] = (4, 8, 8)  # promised, as a stored teacher might, and not there
    with pytest.raises(RecipeError, match=r"attention transfer reads 'lacking': the teacher does not give 'lacking'"):
        settled(AT(layers=[["layer1", "lacking"]]), where)
    with pytest.raises(RecipeError, match="power"):
        AT(power=0.5)
