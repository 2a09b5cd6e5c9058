import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captures import SCHEMA, bits_of, bytes_of

from limbeck.caching.sketch.distillkit import LEAST, SETTINGS, Settings, read
from limbeck.errors import RecipeError
from limbeck.losses import kl, sketched
from limbeck.sketches import Sketch

D = 1000


def captured(folder, tokens=5, first_token=False, settings=None, log_probs=None):
    """A folder with two texts, every byte of it made by hand: 4 exact values, the others on a line over t."""
    told = {
        "d": D,
        "k": 8,
        "exact_k": 4,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1],
        "delta_encoding": False,
    }
    folder.mkdir()
    (folder / SETTINGS).write_text(json.dumps(told | (settings or {})))
    draw, texts = np.random.default_rng(0), []
    for number in range(2):
        length = tokens + number
        ids = [draw.choice(D, 8, replace=False) for _ in range(length - 1 + first_token)]
        exact = [-1.0, -1.5, -2.0, -2.5] if log_probs is None else log_probs
        values = bytes_of(exact, torch.bfloat16) + bytes_of([-3.0, -0.25], torch.float32)
        row = {
            "input_ids": list(range(length)),
            "compressed_logprobs": [values for _ in ids],
            "bytepacked_indices": [bits_of(each, 10) for each in ids],
        }
        table = pa.Table.from_pylist([row], schema=SCHEMA)
        pq.write_table(table, folder / f"data_{number}.parquet")
        texts.append(ids)
    return texts


@pytest.mark.parametrize("first_token", [False, True])
def test_texts_with_their_sketches(tmp_path, first_token):
    texts = captured(tmp_path / "c", first_token=first_token)
    found = list(read(tmp_path / "c"))
    assert [ids.tolist() for ids, _ in found] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    expected = torch.tensor([-1.0, -1.5, -2.0, -2.5, -3.0, -3.25, -3.5, -3.75])
    for (input_ids, sketch), ids in zip(found, texts):
        assert sketch.shape == (len(input_ids) - 1, D)
        assert torch.equal(sketch.ids, torch.tensor(np.array(ids[: len(input_ids) - 1])))
        torch.testing.assert_close(sketch.log_probs, expected.expand(len(sketch.ids), 8))
        torch.testing.assert_close(sketch.log_tail.exp(), (1 - expected.exp().sum()).expand(len(sketch.ids)))
        assert sketch.checked() is sketch


def test_what_sums_to_more_than_one_is_made_a_distribution(tmp_path):
    captured(tmp_path / "c", log_probs=[-0.1, -0.5, -2.0, -2.5])
    for _, sketch in read(tmp_path / "c"):
        sketch.checked(1e-5)
        torch.testing.assert_close(sketch.log_tail.exp(), torch.full((len(sketch.ids),), LEAST), atol=1e-7, rtol=0)
        assert math.isclose(float(sketch.log_probs[0, 0] - sketch.log_probs[0, 1]), 0.4, abs_tol=2e-3)


def test_deltas_residuals_and_terms():
    how = Settings.of(
        {
            "d": D,
            "k": 7,
            "exact_k": 1,
            "exact_dtype": "float32",
            "polynomial_terms": [0, 2, "sqrt"],
            "term_dtype": "float64",
            "residual_bins": [
                {"scale_dtype": "float16", "element_bits": 3, "num_elements": 3},
                {"scale_dtype": "float32", "element_bits": 1, "num_elements": 2},
            ],
            "delta_encoding": True,
            "normalize_t": True,
        }
    )
    packed = bytes_of([-0.5], torch.float32) + bytes_of([-0.4, 0.1, -0.3], torch.float64)
    packed += bytes_of([0.01], torch.float16) + bits_of([0, 4, 7], 3)
    packed += bytes_of([0.02], torch.float32) + bits_of([0, 1], 1)
    assert len(packed) == how.log_probs_bytes
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    steps = -0.4 + 0.1 * t**2 - 0.3 * t.sqrt()
    steps += torch.tensor([-0.04, 0.0, 0.03, -0.02, 0.02, 0.0], dtype=torch.float64)
    expected = torch.cat([torch.tensor([-0.5], dtype=torch.float64), steps]).cumsum(0).float()
    found = how.log_probs(torch.tensor([packed, packed], dtype=torch.uint8))
    torch.testing.assert_close(found, expected.expand(2, 7), atol=1e-4, rtol=0)


def test_bytes_of_the_published_settings():
    """The figures of DistillKit's README: about 300 and 114 bytes for a token."""
    terms = [0, 1, 2, 3, 4, "sqrt"]
    most = {"exact_dtype": "bfloat16", "residual_bins": [], "delta_encoding": False}
    recommended = Settings.of({"d": 32000, "k": 128, "exact_k": 16, "polynomial_terms": terms, **most})
    budget = Settings.of({"d": 32000, "k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"], **most})
    assert recommended.ids_bytes + recommended.log_probs_bytes == 296
    assert budget.ids_bytes + budget.log_probs_bytes == 108


def test_the_whole_vocabulary_has_no_rest():
    how = Settings.of({"d": 4, "k": 4, "exact_k": 4, "delta_encoding": False})
    log_p = torch.randn(3, 4).log_softmax(-1)
    ids = torch.tensor([bits_of([2, 0, 3, 1], 2)] * 3, dtype=torch.uint8)
    sketch = how.sketch(log_p.view(torch.uint8), ids)
    assert isinstance(sketch, Sketch)
    torch.testing.assert_close(sketch.expand()[:, [2, 0, 3, 1]], log_p, atol=1e-6, rtol=0)
    assert torch.isneginf(sketch.log_tail).all()
    short = how.sketch((log_p - 1e-3).view(torch.uint8), ids)  # rounded down: still nothing is left
    assert torch.isneginf(short.log_tail).all()
    student = torch.randn(3, 4, requires_grad=True)
    expected = kl(student, log_p[:, [1, 3, 0, 2]])
    torch.testing.assert_close(sketched.kl(student, sketch), expected, atol=1e-6, rtol=1e-5)


def test_refused(tmp_path):
    with pytest.raises(RecipeError, match="holds no Parquet files"):
        list(read(tmp_path))
    with pytest.raises(RecipeError, match="legacy layout is not read"):
        Settings.of({"vocab_size": 1000, "k": 8, "exact_k": 4, "polynomial_degree": 8})
    captured(tmp_path / "c")
    with pytest.raises(RecipeError, match="a token takes 16 and 10 bytes, and the settings say 12 and 10"):
        list(
            read(tmp_path / "c", {"d": D, "k": 8, "exact_k": 2, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1]})
        )
    (tmp_path / "c" / SETTINGS).unlink()
    with pytest.raises(RecipeError, match="how the logits were packed is not known"):
        list(read(tmp_path / "c"))
    other = pa.table({"text": ["a"]})
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(RecipeError, match="has no column bytepacked_indices; it holds text"):
        list(read(tmp_path / "other.parquet", {"d": D, "k": 8, "exact_k": 8}))
