"""CLIPScore: closed forms, the same numbers as the library's own model and processor, prompts, refusals."""

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.actors import Student
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation.checks import ClipScore
from limbeck.evaluation.clip_score import Clip, Fit, clip_score, texts_of
from limbeck.evaluation.measure import measure
from limbeck.models.toy import PictureDenoiser
from limbeck.tasks import Task


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.1, 200))
def test_alike_is_the_scale_opposite_and_across_are_nothing(count, dims, scale):
    x = torch.rand(count, dims) + 0.1
    torch.testing.assert_close(clip_score(x, x, scale), torch.full((count,), scale, dtype=torch.float64))
    torch.testing.assert_close(clip_score(3 * x, 0.2 * x, scale), clip_score(x, x, scale))
    assert torch.equal(clip_score(x, -x, scale), torch.zeros(count, dtype=torch.float64))
    across = torch.cat([x, torch.zeros_like(x)], 1), torch.cat([torch.zeros_like(x), x], 1)
    assert torch.equal(clip_score(*across), torch.zeros(count, dtype=torch.float64))


def test_it_is_the_cosine_clamped():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [1.0, 1.0], [-1.0, 0.5]])
    torch.testing.assert_close(clip_score(x, y), torch.tensor([96.0, 100 / 2**0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(clip_score(x, y, 2.5), clip_score(x, y) / 40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_models.clip(tmp_path_factory.mktemp("clips"))


def library(place, pictures, texts):
    """Cosines by the model and the processors of transformers alone, from files of 256 levels."""
    import transformers
    from PIL import Image

    model = transformers.CLIPModel.from_pretrained(place).eval()
    prepare = transformers.CLIPImageProcessorPil.from_pretrained(place)
    tokens = transformers.CLIPTokenizer.from_pretrained(place)
    files = [Image.fromarray((p.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()) for p in pictures]
    pixels = prepare(files, return_tensors="pt")["pixel_values"]
    asked = tokens(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(pixel_values=pixels, **asked)
    return (found.image_embeds * found.text_embeds).sum(1).double()


@pytest.mark.parametrize(("high", "wide", "apart"), [(16, 16, 1e-4), (24, 40, 2e-2), (32, 16, 2e-2), (8, 8, 2e-2)])
def test_it_is_what_the_library_says(place, high, wide, apart):
    """Resizing in floats and in 256 levels differs a little."""
    g = torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, high // 8, wide // 8, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pictures = (pictures * 255).round() / 255
    texts = ["a red disc", "a blue square", "zebra", "a green cross"]
    found = clip_score(*Clip(str(place))(pictures, texts), scale=1)
    torch.testing.assert_close(found, library(place, pictures, texts).clamp(min=0), rtol=0, atol=apart)


def test_long_prompts_are_cut_and_neighbours_do_not_matter(place):
    clip, x = Clip(str(place)), torch.rand(2, 3, 16, 16)
    long = "a red disc and " * 30
    together = clip(x, [long, "a"])
    alone = clip(x[1:], ["a"])
    torch.testing.assert_close(together[1][1:], alone[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0][1:], alone[0], rtol=1e-4, atol=1e-5)


def test_a_generators_pictures_are_scored_with_its_prompts_and_beside_them_the_real_ones(place):
    torch.manual_seed(0)
    student = Student(PictureDenoiser(width=8, channels=3, size=16))
    student.look_at(["image", "id"])
    batch = {
        "image": torch.rand(5, 3, 16, 16),
        "prompt": [f"a {c}" for c in ["red", "blue", "green", "zebra", "a"]],
        "id": torch.arange(5),
    }
    check = ClipScore(model=str(place), samples=8)
    once = lambda: iter([dict(batch)])  # noqa: E731
    entry = measure(student, once, Task("generation", target="image"), checks=[check], time_it=False).entry
    facts = entry["judged"]["clip_score"]
    assert (facts["generated"], facts["scale"], facts["model"]) == (8, 100.0, str(place))
    clip, found = Clip(str(place)), []
    for turn in range(2):
        made = student(batch | {"id": batch["id"] + (turn << 40)})["generated"]
        seen = (made.clamp(0, 1) * 255).round() / 255
        found.append(clip_score(*clip(seen, batch["prompt"])))
    assert entry["figures"]["clip_score"] == pytest.approx(float(torch.cat(found)[:8].mean()), rel=1e-5)
    seen = (batch["image"] * 255).round() / 255
    assert facts["of_the_data"] == pytest.approx(float(clip_score(*clip(seen, batch["prompt"])).mean()), rel=1e-5)


def test_the_scale_only_scales(place):
    judges = [Fit(Clip(str(place)), scale) for scale in (100.0, 2.5)]
    batch, x = {"text": ["a red disc", "a"], "id": torch.arange(2)}, torch.rand(2, 3, 16, 16)
    for judge in judges:
        judge.see(x, x, batch)
    one, other = (judge.figures(World())[0]["clip_score"] for judge in judges)
    assert one == pytest.approx(40 * other)


def test_prompts_are_found_by_name_or_alone():
    assert texts_of({"prompt": ["a"], "other": ["b"], "id": torch.arange(1)}) == ["a"]
    assert texts_of({"words": ["b"], "image": torch.rand(1)}) == ["b"]
    with pytest.raises(RecipeError, match="several columns hold texts"):
        texts_of({"one": ["a"], "two": ["b"]})
    with pytest.raises(RecipeError, match="no column holds texts"):
        texts_of({"image": torch.rand(1), "label": torch.arange(1)})


def test_what_is_no_clip_is_refused_and_a_name_that_is_not_to_be_had_says_how_to_give_a_path(
    place, tmp_path, monkeypatch
):
    import transformers

    transformers.CLIPTextModel.from_pretrained(place).save_pretrained(tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "text" / name).write_bytes((place / name).read_bytes())
    with pytest.raises(RecipeError, match="is a CLIPTextModel"):
        Clip(str(tmp_path / "text"))

    def no_network(*args, **options):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", no_network)
    with pytest.raises(RecipeError, match=r"couldn't connect.*evaluate\.clip-score\.model=FOLDER"):
        Clip()
