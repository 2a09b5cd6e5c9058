"""A stored teacher says what the teacher said, by sample and view, and refuses everything else in a sentence."""

from __future__ import annotations

import copy
import math
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import limbeck
from limbeck import RecipeError, Student, Teacher
from limbeck.caching import form
from limbeck.data.tensors import Data, TensorSplit
from limbeck.randomness import seeds_for
from limbeck.teachers.mixture import Mixture
from limbeck.teachers.stored import Stored, _Index
from limbeck.views import Noise, View


class Net(nn.Module):
    def __init__(self, inputs: int = 4):
        super().__init__()
        self.body, self.head = nn.Linear(inputs, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x).relu())


def data(rows: int = 23, seed: int = 0) -> Data:
    g = torch.Generator().manual_seed(seed)

    def part(n: int, first: int) -> TensorSplit:
        return TensorSplit(
            {"x": torch.randn(n, 4, generator=g), "label": torch.randint(0, 3, (n,), generator=g)}, first
        )

    return Data({"train": part(rows, 0), "validation": part(9, rows)}, {"x": "", "label": ""}, source="toy")


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(form, "SHARD_ROWS", 8)


def ask(tmp_path, teacher=None, found=None, name="cache", **keys):
    teacher = teacher or Teacher(network(), view="x", taps={"hint": "body"})
    keys = {"cache": {"signals": ["logits", "hint"], "dtype": "fp32"}, "train": {"batch_size": 4}, "seed": 7} | keys
    return limbeck.cache(out=tmp_path / name, data=found or data(), teacher=teacher, **keys), teacher


def test_any_batch_in_any_order_is_answered_as_the_teacher_answers(tmp_path):
    stored, teacher = ask(tmp_path)
    assert isinstance(stored, Stored)
    assert stored.holds == ["hint", "logits"]  # in the order of the forward pass
    assert stored.shapes == {"hint": (6,), "logits": (3,)}
    found = data()
    assert len(stored.header["shards"]) == 5
    for split, rows in (("train", [22, 0, 7, 8, 15, 3, 3]), ("validation", [8, 1]), ("train", [5])):
        batch = found[split].__getitems__(rows)
        signals, expected = stored(batch), teacher(batch)
        for signal in ("hint", "logits"):
            torch.testing.assert_close(signals[signal], expected[signal], rtol=0, atol=1e-6)
        assert set(stored(batch, reads=["hint"])) == {"hint"}


@given(st.lists(st.integers(0, 22), max_size=40))
def test_rows_of_many_shards_come_in_the_order_of_the_batch(many, rows):
    ids = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(many({"id": ids})["logits"], many({"id": torch.arange(23)})["logits"][ids])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(form, "SHARD_ROWS", 4)
        stored, _ = ask(tmp_path_factory.mktemp("many"))
    assert len(stored.header["shards"]) == 9
    return stored


@given(st.lists(st.integers(-(2**62), 2**62), unique=True, max_size=30), st.integers(1, 5), st.data())
def test_an_index_finds_what_is_there_and_nothing_else(keys, size, drawn):
    pieces = [torch.tensor(keys[i : i + size], dtype=torch.int64) for i in range(0, len(keys), size)] + [None]
    starts = torch.tensor([0, *[len(p) for p in pieces if p is not None]]).cumsum(0)
    index = _Index(pieces, starts)
    asked = drawn.draw(st.lists(st.sampled_from([*keys, 2**62 + 1, -(2**62) - 1]), min_size=1))
    positions, found = index.find(torch.tensor(asked))
    assert found.tolist() == [key in keys for key in asked]
    assert [keys[p] for p, there in zip(positions.tolist(), found.tolist()) if there] == [k for k in asked if k in keys]


def test_storage_of_fewer_bits_rounds_once_and_gives_the_type_back(tmp_path):
    for dtype, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        stored, teacher = ask(tmp_path, name=dtype, cache={"signals": ["logits"], "dtype": dtype})
        batch = data()["train"].__getitems__([0, 1, 2, 3])
        assert torch.equal(stored(batch)["logits"], teacher(batch)["logits"].to(kind).float())


def test_top_k_keeps_the_most_likely_and_the_mass_of_the_rest(tmp_path):
    stored, teacher = ask(tmp_path, cache={"signals": "logits", "top_k": 1, "dtype": "fp32"})
    batch = data()["train"].__getitems__(list(range(23)))
    p, q = teacher(batch)["logits"].softmax(-1), stored(batch)["logits"].exp()
    torch.testing.assert_close(q.sum(-1), torch.ones(23))
    torch.testing.assert_close(q.amax(-1), p.amax(-1))
    assert torch.equal(q.argmax(-1), p.argmax(-1))


def noisy(salt: int = 0) -> View:
    return View("x", transforms=[Noise(std=0.5, salt=salt)])


def test_stored_views_are_those_of_the_epochs_and_come_round_again(tmp_path):
    teacher = Teacher(network(), view=noisy())
    stored, _ = ask(tmp_path, teacher, cache={"signals": "logits", "dtype": "fp32", "views": 3})
    assert [(p["split"], p["view"]) for p in stored.header["passes"]] == [
        ("train", 0),
        ("train", 1),
        ("train", 2),
        ("validation", None),
    ]
    batch = data()["train"].__getitems__([4, 20, 9])
    said = []
    for epoch in range(5):
        seeds = stored.view_seeds(batch["id"], 99, epoch)
        assert torch.equal(seeds, seeds_for(batch["id"], 7, epoch % 3))  # the recipe's seed, whatever the run's
        said.append(stored(batch | {"view_seed": seeds})["logits"])
        torch.testing.assert_close(said[-1], teacher(batch | {"view_seed": seeds})["logits"], rtol=0, atol=1e-6)
    assert torch.equal(said[0], said[3])
    assert not torch.allclose(said[0], said[1])
    with pytest.raises(RecipeError, match=r"no answer about sample 4 in this random view.*training in 3 views"):
        stored(batch | {"view_seed": seeds_for(batch["id"], 7, 3)})
    with pytest.raises(RecipeError, match="no answer about sample 4 as it is"):
        stored(batch)
    assert stored.answers("validation")
    assert not stored.answers("train")


def test_a_seed_of_another_sample_is_not_believed(tmp_path):
    stored, _ = ask(tmp_path, Teacher(network(), view=noisy()), cache={"signals": "logits"})
    batch = data()["train"].__getitems__([4, 20])
    swapped = stored.view_seeds(batch["id"], 0, 0).flip(0)
    with pytest.raises(RecipeError, match="no answer about sample 4 in this random view"):
        stored(batch | {"view_seed": swapped})


def test_without_a_random_view_one_answer_serves_every_seed(tmp_path):
    stored, _ = ask(tmp_path, cache={"signals": "logits", "views": 3})
    assert stored.header["views"] is None
    batch = data()["train"].__getitems__([4, 20])
    assert torch.equal(stored.view_seeds(batch["id"], 5, 2), seeds_for(batch["id"], 5, 2))
    assert torch.equal(stored(batch)["logits"], stored(batch | {"view_seed": torch.tensor([1, 2])})["logits"])


def test_nothing_can_be_done_inside(tmp_path):
    stored, _ = ask(tmp_path)
    batch = data()["train"].__getitems__([0])
    with pytest.raises(RecipeError, match="replaces 'hint' inside the teacher"):
        stored(batch, replace={"hint": lambda x: x})
    with pytest.raises(RecipeError, match="stops at 'hint' inside the teacher"):
        stored(batch, until="hint")
    with pytest.raises(RecipeError, match="gradients go through it"):
        stored.mode = "through"
    with pytest.raises(RecipeError, match="trains the teacher"):
        stored.learning = True
    stored.mode, stored.learning = "frozen", False
    with pytest.raises(RecipeError, match="no network to run"):
        stored.model(torch.zeros(1))
    with pytest.raises(RecipeError, match="shown nothing"):
        stored.shown(batch)
    assert stored.listen_again() is None
    assert stored.probe(batch) == stored.shapes


def test_an_unknown_signal_is_answered_with_those_that_are_held(tmp_path):
    stored, _ = ask(tmp_path)
    batch = data()["train"].__getitems__([0])
    told = (
        r"does not hold 'embedding' of the teacher; it holds hint, logits\..*cache\.signals=\[hint, logits, embedding\]"
    )
    with pytest.raises(RecipeError, match=told):
        stored(batch, reads=["embedding"])
    with pytest.raises(RecipeError, match=told):
        stored.tap("embedding", "head:input")
    with pytest.raises(RecipeError, match="head: .*does not hold 'hint'"):
        stored.tap("hint", "head")
    assert stored.tap("hint", "body") is stored


def test_what_it_was_is_known_without_it(tmp_path):
    stored, teacher = ask(tmp_path)
    assert type(stored.model).__name__ == "Net"
    assert stored.parameters_count() == teacher.parameters_count() == 51
    assert stored.bytes_count() == teacher.bytes_count() == 4 * 51
    assert stored.fingerprint() == teacher.fingerprint()
    assert stored.members == {"teacher": stored}
    assert stored.look_at(["x", "label"]) == teacher.view
    assert "of Net given in Python" in stored.source.describe()
    for again in (
        Teacher(tmp_path / "cache"),
        Teacher(str(tmp_path / "cache"), view="x"),
        pickle.loads(pickle.dumps(stored)),
    ):
        assert isinstance(again, Stored)
        assert again.holds == stored.holds
    assert copy.deepcopy(stored) is stored
    with pytest.raises(RecipeError, match="holds a teacher's answers and no network"):
        Student(tmp_path / "cache")


def test_another_teacher_view_or_place_given_along_is_refused(tmp_path):
    _, teacher = ask(tmp_path)
    path = tmp_path / "cache"
    Stored(path, of=teacher)
    Stored(path, of=Teacher(network(), view="x"))
    with pytest.raises(RecipeError, match=r"the answers of Net given in Python.*not of the teacher given along"):
        Stored(path, of=Teacher(network(1), view="x"))
    with pytest.raises(RecipeError, match="was shown x, not"):
        Teacher(path, view=noisy())
    with pytest.raises(RecipeError, match="does not hold 'deep'"):
        Teacher(path, taps={"deep": "head"})
    with pytest.raises(RecipeError, match=r"teacher\.args is for a network"):
        Teacher(path, args={"width": 3})
    with pytest.raises(RecipeError, match=r"teacher\.dtype is for a network"):
        Teacher(path, dtype="bf16")


def test_weights_given_along_must_be_those_that_were_asked(tmp_path):
    from safetensors.torch import save_file

    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    save_file(network(3).state_dict(), own)
    save_file(network(4).state_dict(), other)
    ask(tmp_path, Teacher(network(), view="x", weights=own), cache={"signals": "logits"})
    assert Teacher(tmp_path / "cache", weights=own).holds == ["logits"]
    for wrong in (other, tmp_path / "nowhere.safetensors"):
        with pytest.raises(RecipeError, match="whose weights are not those of"):
            Teacher(tmp_path / "cache", weights=wrong)


def test_other_data_are_refused(tmp_path):
    stored, _ = ask(tmp_path)
    stored.check_data(data())
    with pytest.raises(RecipeError, match=r"holds answers about toy .*other rows, columns or classes"):
        stored.check_data(data(seed=1))
    with pytest.raises(RecipeError, match="holds answers about toy"):
        Mixture({"a": stored}).check_data(data(seed=1))
    with pytest.raises(RecipeError, match="no answer about sample 1000 as it is. It was asked about train, validation"):
        stored({"id": torch.tensor([3, 1000])})


def test_changed_inputs_are_seen_in_the_first_batches_of_a_training(tmp_path):
    stored, _ = ask(tmp_path)
    found = data()
    batch = found["train"].__getitems__([21, 3, 8])
    batch |= {"view_seed": torch.tensor([1, 2, 3])}
    mixed = batch | {"x": (batch["x"] + batch["x"].roll(1, 0)) / 2}
    assert stored(mixed)["logits"].shape == (3, 3)  # nobody has told it which data there are
    stored.check_data(found)
    for changed in (mixed, batch | {"x": batch["x"].flip(0)}, batch | {"x": batch["x"][:, :2]}):
        stored.check_data(found)
        stored(batch)
        with pytest.raises(RecipeError, match="shown 'x' as the data have it, and this method changes it"):
            stored(changed)
    stored.check_data(found)
    found["train"].tensors["x"][3, 0] = math.nan
    nan = found["train"].__getitems__([3]) | {"view_seed": torch.tensor([1])}
    stored(nan)
    stored(nan)
    assert stored._looks == 2


def test_damage_is_refused_when_it_is_opened(tmp_path):
    ask(tmp_path)
    path = tmp_path / "cache"
    shard = path / "shard-00001.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-5])
    with pytest.raises(RecipeError, match=r"shard-00001\.safetensors is cut short.*Mend it"):
        Teacher(path)
    shard.write_bytes(b"\xff" * len(raw))
    with pytest.raises(RecipeError, match=r"shard-00001\.safetensors is damaged"):
        Teacher(path)
    shard.unlink()
    with pytest.raises(RecipeError, match=r"shard-00001\.safetensors is missing"):
        Teacher(path)
    ask(tmp_path)
    assert shard.read_bytes() == raw
    header = form.read(path)
    form.durable(path / form.FILE, (form.json.dumps(header | {"complete": False})).encode())
    with pytest.raises(RecipeError, match="is not finished. Go on with: limbeck cache RECIPE --out"):
        Teacher(path)
    shutil.rmtree(path)


def test_stored_teachers_mix_with_others(tmp_path):
    stored, teacher = ask(tmp_path)
    other = Teacher(network(5), view="x")
    batch = data()["train"].__getitems__([1, 2])
    mixed = Mixture({"old": stored, "new": other})
    assert mixed.stored
    mixed.probe(batch)
    expected = (teacher(batch)["logits"] + other(batch)["logits"]) / 2
    torch.testing.assert_close(mixed(batch, reads=["logits"])["logits"], expected)
    with pytest.raises(RecipeError, match="features are replaced"):
        mixed.mode = "through"


def test_views_of_several_stored_teachers_must_agree(tmp_path):
    teachers = [
        ask(tmp_path, Teacher(network(), view=noisy()), name=f"{seed}", seed=seed, cache={"signals": "logits"})[0]
        for seed in (1, 2)
    ]
    ids = torch.arange(3)
    free = Teacher(network(), view=noisy())
    one = Mixture({"a": free, "b": teachers[0]})
    assert torch.equal(one.view_seeds(ids, 0, 4), seeds_for(ids, 1, 0))
    assert torch.equal(Mixture({"a": free}).view_seeds(ids, 0, 4), seeds_for(ids, 0, 4))
    with pytest.raises(RecipeError, match="stored in different random views"):
        Mixture({"a": teachers[0], "b": teachers[1]}).view_seeds(ids, 0, 4)


def test_a_mixture_is_stored_whole(tmp_path):
    members = {"one": Teacher(network(1), view="x"), "two": Teacher(network(2), view="x")}
    stored, teacher = ask(tmp_path, Mixture(members), cache={"signals": ["logits", "two.logits"], "dtype": "fp32"})
    batch = data()["train"].__getitems__([1, 2])
    for name in ("logits", "two.logits"):
        torch.testing.assert_close(stored(batch)[name], teacher(batch)[name], rtol=0, atol=1e-6)
    assert type(stored.model).__name__ == "Net + Net"
    assert not math.isnan(stored.parameters_count())
