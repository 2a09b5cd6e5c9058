"""TRG: its three parts written out, the draw of tokens, pieces, restart, a whole run."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from small_pictures import distilled, settled, situation
from torch import nn

from limbeck.errors import RecipeError
from limbeck.losses.graph import inner_relations, token_neighbours
from limbeck.method import Progress
from limbeck.methods.kd import KD
from limbeck.methods.trg import TRG


def maps(where, batch):
    ours, theirs = where.student.model, where.teacher.model
    return ours.high(ours.middle(ours.low(batch["x"]))), theirs.high(theirs.middle(theirs.low(batch["x"])))


def test_the_parts_are_their_losses_on_all_tokens_where_none_is_left_out():
    where = situation()
    method = TRG(tokens=32, neighbours=5, width=6, inner_weight=2.0, local_weight=3.0, contrast_weight=0.5)
    batch = settled(method, where)
    s, t = (m.flatten(2).mT for m in maps(where, batch))
    s_all, t_all = s.flatten(0, 1), t.flatten(0, 1)
    assert len(s_all) == 8 * 4
    cosines = F.cosine_similarity(method.maps[0](s_all)[:, None], method.maps[1](t_all)[None], dim=-1)
    expected = {
        "inner": 2.0 * inner_relations(s, t).mean(),
        "local": 3.0 * token_neighbours(s_all, t_all, neighbours=5).mean(),
        "contrast": 0.5 * F.cross_entropy(cosines / 0.5, torch.arange(32)),  # at the beginning the temperature is 0.5
        "task": F.cross_entropy(where.student.model(batch["x"]), batch["label"]),
    }
    loss = method.loss(batch)
    for (name, value), found in zip(expected.items(), loss.values_weighted(), strict=True):
        torch.testing.assert_close(found, value, msg=name)
    assert list(loss.parts) == list(expected)


def test_the_temperature_falls():
    where, method = situation(), TRG(tokens=32)
    batch = settled(method, where)
    contrast = []
    for step in (0, 5, 10):
        object.__setattr__(method, "progress", Progress(step=step, steps=10))
        part = method.loss(batch).parts["contrast"]
        ours, theirs = (m(x) for m, x in zip(method.maps, method._drawn(**part.tensors)))
        cosines = F.cosine_similarity(ours[:, None], theirs[None], dim=-1)
        heat = 0.5 + (0.07 - 0.5) * step / 10
        torch.testing.assert_close(part.value(part.tensors), F.cross_entropy(cosines / heat, torch.arange(32)))
        contrast.append(heat)
    assert contrast == sorted(contrast, reverse=True)


def test_tokens_are_drawn_by_the_samples_seeds_and_the_same_of_both():
    where, method = situation(), TRG(tokens=9)
    settled(method, where)
    x = torch.arange(8 * 4.0).view(8, 4, 1)
    seeds = torch.arange(8) * 77
    ours, theirs = method._drawn(x, 2 * x, seeds)
    assert len(ours.unique()) == 9
    assert torch.equal(2 * ours, theirs)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    again, _ = method._drawn(x[order], x[order], seeds[order])
    assert set(again.flatten().tolist()) == set(ours.flatten().tolist())
    other, _ = method._drawn(x, x, seeds + 1)
    assert set(other.flatten().tolist()) != set(ours.flatten().tolist())
    counts = torch.zeros(32)
    for i in range(400):
        counts[method._drawn(x, x, seeds + 1000 * i)[0].flatten().long()] += 1
    expected = 400 * 9 / 32
    assert float(((counts - expected) ** 2 / expected).sum()) < 80  # 31 degrees of freedom: p < 1e-5


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_its_maps_survive_a_kill(micro_batch, tmp_path):
    course = survives(lambda: (TRG(tokens=10), situation(micro_batch=micro_batch)), tmp_path)
    assert "maps.1.weight" in course.methods[0].state_dict()


def test_the_cut_does_not_show(tmp_path):
    def build(micro_batch):
        return TRG(tokens=10, width=4), situation(epochs=1, micro_batch=micro_batch)

    whole, cut = (survives(lambda m=m: build(m), tmp_path / str(m)) for m in ("auto", 3))
    for ours, theirs in zip(whole.situation.student.model.parameters(), cut.situation.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(whole.methods[0].maps[1].weight, cut.methods[0].maps[1].weight, rtol=1e-3, atol=1e-5)


def test_it_adds_up_with_kd_and_runs_from_a_recipe(tmp_path):
    method = KD() + TRG(tokens=10)
    batch = settled(method, situation())
    assert set(method.loss(batch).parts) == {"kl", "inner", "local", "contrast", "task"}
    run = distilled([{"use": "kd"}, {"use": "trg", "tokens": 12}], tmp_path)
    assert run.result["status"] == "finished"


def test_a_larger_map_is_averaged_to_the_smaller_ones_positions():
    where, method = situation(), TRG(layers=[["middle", "high"]], tokens=99)
    batch = settled(method, where)
    part = method.loss(batch).parts["local"]
    ours, theirs = part.tensors["student"], part.tensors["teacher"]
    assert ours.shape == (8, 4, 4)
    assert theirs.shape == (8, 4, 12)
    middle = where.student.model.middle(where.student.model.low(batch["x"]))
    torch.testing.assert_close(ours, F.avg_pool2d(middle, 2).flatten(2).mT)


class Sequence(nn.Module):
    """[2, 8, 8] as eight tokens of width 16."""

    def __init__(self, tokens=8):
        super().__init__()
        self.tokens, self.body, self.head = tokens, nn.Linear(128 // tokens, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x.reshape(len(x), self.tokens, -1)).mean(1))


def test_sequences_are_tokens_as_they_are_and_go_with_maps_of_as_many_positions():
    where, method = situation(), TRG(layers=[["body", "high"]])
    where.student.model = Sequence(4)
    batch = settled(method, where)
    part = method.loss(batch).parts["local"]
    torch.testing.assert_close(part.tensors["student"], where.student.model.body(batch["x"].reshape(8, 4, 32)))
    where, method = situation(), TRG(layers=[["body", "high"]])
    where.student.model = Sequence(8)
    with pytest.raises(RecipeError, match=r"trg needs the same tokens.*\[8, 5\].*\[12, 2, 2\] have 8 and 4"):
        settled(method, where)


def test_mistakes_are_sentences():
    with pytest.raises(RecipeError, match="trg compares one pair of layers"):
        settled(TRG(layers=["low", "high"]), situation())
    with pytest.raises(RecipeError, match=r"the student's is \[8\]"):
        settled(TRG(layers=["norm"]), situation())
    with pytest.raises(RecipeError, match="trg.direction"):
        TRG(direction="both")
