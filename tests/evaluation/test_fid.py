"""The Frechet distance of pictures: closed forms in known features, whose features they are, what it is called, and rounds of new noise."""

import math

import pytest
import tiny_models
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation import judged
from limbeck.evaluation.checks import Fid, chosen
from limbeck.evaluation.fid import Distance, Eye
from limbeck.evaluation.generation import frechet
from limbeck.evaluation.measure import measure
from limbeck.models import inception
from limbeck.models.toy import PictureDenoiser
from limbeck.tasks import Task

LEVEL = 1 / 255


class Means(nn.Module):
    """Sixteen places of the first channel, as features; a linear layer behind them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(x[:, :1], 4).flatten(1))


class Named(Means):
    """The same features by name, and a map of them."""

    def forward(self, image):
        return {"features": image[:, 0].flatten(1), "map": image}


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """An address for these networks."""
    import sys
    import types

    module = types.ModuleType("eyes_of_tests")
    module.Means, module.Named = Means, Named
    monkeypatch.setitem(sys.modules, "eyes_of_tests", module)
    monkeypatch.chdir(tmp_path)


def pictures(count=40, seed=0, side=4):
    """Pictures in whole levels."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(60, 190, (count, 1, side, side), generator=g) * LEVEL


def distance(made, real, **options):
    judge = Distance(Eye("eyes_of_tests:Means", **options), batch_size=7)
    judge.see(made, real, {"id": torch.arange(len(made))})
    return judge.figures(World())


def test_of_the_same_pictures_it_is_nothing_and_of_moved_ones_the_square_of_the_way(networks):
    real = pictures()
    figures, facts = distance(real.clone(), real)
    assert figures == {"frechet_Means": pytest.approx(0, abs=1e-6)}
    figures, _ = distance(real + 10 * LEVEL, real)
    assert figures["frechet_Means"] == pytest.approx(16 * (10 * LEVEL) ** 2, rel=1e-4)
    assert facts == {"frechet_Means": {"features": "eyes_of_tests:Means", "dims": 16, "generated": 40, "real": 40}}


def test_it_is_the_distance_of_the_features(networks):
    made, real = pictures(50, 1), pictures(40, 2)
    expected = frechet(made.flatten(1), real.flatten(1))
    assert distance(made, real)[0]["frechet_Means"] == pytest.approx(expected, rel=1e-5)


def test_what_is_in_minus_one_to_one_is_understood(networks):
    made, real = pictures(30, 1), pictures(30, 2)
    expected = distance(made, real)[0]
    assert distance(2 * made - 1, 2 * real - 1)[0] == pytest.approx(expected, rel=1e-3)


def test_real_pictures_of_another_size_are_seen_as_large_as_generated_ones(networks):
    plain = pictures(30, side=1)  # one level each, whose size does not change it
    figures, facts = distance(plain.expand(-1, 1, 8, 8), plain.expand(-1, 1, 20, 12))
    assert figures["frechet_Means"] == pytest.approx(0, abs=1e-6)
    assert facts["frechet_Means"]["dims"] == 16


def test_features_are_where_one_says_or_where_they_usually_are(networks):
    x = pictures(3).expand(-1, 3, -1, -1)
    torch.testing.assert_close(Eye("eyes_of_tests:Means")(x), x[:, 0].flatten(1))  # what the last linear layer is given
    torch.testing.assert_close(Eye("eyes_of_tests:Means", "head:input")(x), x[:, 0].flatten(1))
    torch.testing.assert_close(Eye("eyes_of_tests:Named")(x), x[:, 0].flatten(1))  # what it calls features
    torch.testing.assert_close(Eye("eyes_of_tests:Named", "output.map")(x), x.mean((2, 3)))  # maps are averaged
    with pytest.raises(RecipeError, match="nowhere"):
        Eye("eyes_of_tests:Means", "nowhere")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_models.clip(tmp_path_factory.mktemp("eyes"))


def test_a_clip_looks_with_its_own_half_prepared_as_its_folder_says(clip):
    import transformers

    eye, x = Eye(str(clip)), torch.rand(3, 3, 16, 16)
    whole = transformers.AutoModel.from_pretrained(clip).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(clip)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        vision = whole.vision_model(pixel_values=(x - mean) / std).pooler_output
        expected = whole.visual_projection(vision)
    torch.testing.assert_close(eye(x), expected)
    assert eye.figure == "frechet_CLIPModel"


def test_a_dino_gives_its_pooled_output(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=16, patch_size=8, **sizes)).eval()
    model.save_pretrained(tmp_path / "dino")
    eye, x = Eye(str(tmp_path / "dino")), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(eye(x), model(x).pooler_output)
    assert eye.figure == "frechet_Dinov2Model"
    tokens = Eye(str(tmp_path / "dino"), "output.last_hidden_state")
    with torch.no_grad():
        torch.testing.assert_close(tokens(x), model(x).last_hidden_state.mean(1))


def test_only_the_features_of_inception_make_it_the_fid(monkeypatch):
    asked = []

    class Small(nn.Module):
        def forward(self, x):
            return {"embedding": x.mean((2, 3)), "logits": x.mean((2, 3))}

    monkeypatch.setattr(inception, "load", lambda place=None: asked.append(place) or Small())
    assert Eye().figure == Eye("weights.pth").figure == "fid"
    assert asked == [None, "weights.pth"]
    assert Eye("weights.pth", "output.logits").figure == "frechet_Small"
    judge = Distance(Eye())
    made, real = pictures(20, 1), pictures(20, 2)
    judge.see(made, real, {"id": torch.arange(20)})
    figures, facts = judge.figures(World())
    means = [x.expand(-1, 3, -1, -1).mean((2, 3)) for x in (made, real)]
    assert figures["fid"] == pytest.approx(frechet(*means), rel=1e-4)
    assert facts["fid"]["features"] == inception.URL


def test_several_processes_see_what_one_sees(networks):
    """Two processes with every second row each, the last one a ghost's, who are asked for the first five."""
    made, real, ids = pictures(9, 1), pictures(9, 2), torch.arange(9)

    class Two(World):
        def gather_rows(self, rows):
            return torch.cat([parts.pop(0) for parts in kept]), 0

    def seen(rows, samples=5):
        judge = Distance(Eye("eyes_of_tests:Means"), samples=samples)
        for i in rows:
            judge.see(made[i : i + 1], real[i : i + 1], {"id": ids[i : i + 1]})
        return judge

    one, first, second = seen(range(9)), seen(range(0, 9, 2)), seen(range(1, 9, 2))
    kept = [[torch.cat(part) for part in (judge.made, judge.ids, judge.real)] for judge in (first, second)]
    alone, _ = one.figures(World())
    together, facts = first.figures(Two())
    assert facts["frechet_Means"]["generated"] == 5
    assert together == pytest.approx(alone)
    assert len(one.made) == 5  # more are not looked at


def test_a_network_that_is_nowhere_is_refused(monkeypatch):
    import huggingface_hub

    def no_network(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(RecipeError, match=r"'somebody/dino'.*no route.*evaluate\.fid\.classifier=FOLDER"):
        Eye("somebody/dino")


def situation(count=10):
    """A generator of grey pictures and its rows, three per batch."""
    torch.manual_seed(0)
    student = Student(PictureDenoiser(width=8, classes=3))
    student.look_at(["image", "label", "id"])
    label = torch.arange(count) % 3
    batches = [
        {"image": pictures(count, side=8)[i : i + 3], "label": label[i : i + 3], "id": torch.arange(count)[i : i + 3]}
        for i in range(0, count, 3)
    ]
    return student, lambda: iter([dict(batch) for batch in batches])


def test_as_many_samples_are_made_as_are_asked_for(networks):
    student, once = situation()
    task = Task("generation", target="image")
    counts = {}
    for samples in (None, 4, 25):
        check = Fid(classifier="eyes_of_tests:Means", **({} if samples is None else {"samples": samples}))
        entry = measure(student, once, task, checks=["quality", check], time_it=False).entry
        counts[samples] = entry["judged"]["frechet_Means"]["generated"], entry["judged"]["frechet_Means"]["real"]
        assert math.isfinite(entry["figures"]["frechet_Means"])
    assert counts == {None: (10, 10), 4: (4, 10), 25: (25, 10)}


def test_a_further_round_has_the_conditions_of_the_rows_and_new_noise(networks):
    student, once = situation()
    seen = []

    class Watcher:
        samples = 25

        def see(self, made, real, batch):
            seen.append((made, real is None, batch["label"]))

    watched = judged.Watched(Task("generation", target="image"), [Watcher()])
    for batch in once():
        watched.outputs(student(batch), batch)
    with torch.no_grad():
        judged.further_rounds(student, once, watched, World())
    rounds = [torch.cat([made for made, *_ in seen[i : i + 4]]) for i in range(0, 12, 4)]
    assert [again for _, again, _ in seen] == [False] * 4 + [True] * 8
    assert len(seen) == 12
    assert torch.equal(torch.cat([label for *_, label in seen[:4]]), torch.cat([label for *_, label in seen[4:8]]))
    assert all(not torch.allclose(a, b) for a, b in ((rounds[0], rounds[1]), (rounds[1], rounds[2])))


def test_what_cannot_be_judged_is_refused_before_the_training(networks, monkeypatch):
    data = Data({"train": TensorSplit({"image": pictures(4)}, 0)}, {}, {}, source="four")
    asked = chosen([Fid(classifier="eyes_of_tests:Means")])
    task = Task("generation", target="image")
    judged.refuse_unfit(asked, task, data, (1, 4, 4))
    judged.refuse_unfit(chosen(["quality", "speed"]), Task("classification"), data, None)
    with pytest.raises(RecipeError, match="the task is classification"):
        judged.refuse_unfit(asked, Task("classification"), data, None)
    with pytest.raises(RecipeError, match=r"shape \[2\]"):
        judged.refuse_unfit(asked, task, data, (2,))
    with pytest.raises(RecipeError, match="no module nobody"):
        judged.refuse_unfit(chosen([Fid(classifier="nobody:Here")]), task, data, (1, 4, 4))
    with pytest.raises(RecipeError, match="no column holds texts"):
        judged.refuse_unfit(chosen(["clip-score"]), task, data, (1, 4, 4))
