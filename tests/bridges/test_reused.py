"""The operation that gives a student its teacher's classifier: names, copies, export, and what cannot be read."""

import copy

import pytest
import torch
from small_nets import Conv, structure
from torch import nn

from limbeck.bridges.reused import Lent, Projector, ReusedClassifier, reuse
from limbeck.errors import RecipeError
from limbeck.signals import Tap


def operated(**changes) -> nn.Module:
    torch.manual_seed(0)
    net = Conv().eval()
    reuse(net, **(structure() | changes))
    return net


def test_the_student_answers_through_projector_pooling_and_classifier():
    net, x = operated(), torch.randn(5, 1, 8, 8)
    head = net.fc
    assert isinstance(head, ReusedClassifier)
    expected = head.classifier(head.projector(net.body(x)).mean((2, 3)))
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(head.projected.take(), head.projector(net.body(x)))


@pytest.mark.parametrize(("tail", "inputs"), [("mean", 6), ("max", 6), ("flatten", 24)])
def test_each_way_from_map_to_classifier(tail, inputs):
    net = operated(tail=tail, inputs=inputs)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_names_of_what_was_there_stay_and_the_classifier_is_frozen():
    before, net = set(Conv().state_dict()), operated()
    own = {name for name in net.state_dict() if not name.startswith("fc.")}
    assert own == {name for name in before if not name.startswith("fc.")}
    assert not any(p.requires_grad for p in net.fc.classifier.parameters())
    assert all(p.requires_grad for p in net.fc.projector.parameters())


def test_the_input_of_the_classifier_can_be_the_features():
    net = operated(features=None, shape=[4], size=[1, 1])
    x = torch.randn(3, 1, 8, 8)
    expected = net.fc.classifier(net.fc.projector(net.body(x).mean((2, 3))).mean((2, 3)))
    torch.testing.assert_close(net(x), expected)


def test_a_copy_is_a_network_of_its_own_and_holds_no_graph():
    net, x = operated(), torch.randn(2, 1, 8, 8)
    net.body(x)  # a pass that stopped before the classifier: what was lent is still there, with its graph
    assert net.fc.lent.value.requires_grad
    other = copy.deepcopy(net)
    assert other.fc.lent is not net.fc.lent
    assert other.fc.lent.value is None
    with torch.no_grad():
        for p in net.body.parameters():
            p.zero_()
    assert not torch.equal(other(x), net(x))


def test_it_can_be_exported_and_compiled_by_tracing():
    net, x = operated(), torch.randn(2, 1, 8, 8)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    more = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(program.module()(more), net(more))


def test_a_place_that_was_not_passed_is_named():
    net = operated()
    with pytest.raises(RecipeError, match="'body' was not run before its classifier"):
        net.fc(torch.randn(2, 4))
    lent = Lent(Tap("body:input").resolve(net)).attach(net)
    x = torch.randn(2, 1, 8, 8)
    net(x)
    assert torch.equal(lent.take(), x)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 2, 2), (4,), (16, 4), (17, 4)])
@pytest.mark.parametrize("positive", [True, False])
def test_the_projector_gives_the_teachers_map_from_anything(shape, positive):
    projector = Projector(shape, 6, (4, 4), reduction=2, positive=positive)
    found = projector(torch.randn(5, *shape))
    assert found.shape == (5, 6, 4, 4)
    assert bool((found >= 0).all()) is positive
    convolutions = [m for m in projector.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions] == [
        (4, 3, 1),
        (3, 3, 3),
        (3, 6, 1),
    ]
    assert projector.ships
    assert "bottleneck" in projector.words()
