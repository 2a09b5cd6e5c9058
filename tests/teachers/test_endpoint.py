"""A teacher behind a server: the sketch is the model's own distribution; nothing is asked twice or lost; clear sentences."""

import json
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from serving import VOCABULARY, served, truth

from limbeck.errors import RecipeError
from limbeck.language.tokens import Tokens
from limbeck.teachers.asking import EndpointError, Price
from limbeck.teachers.endpoint import Endpoint
from limbeck.teachers.journal import Journal

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from trained_tokenizers import trained

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9], [7], [2, 7, 1, 8, 2, 8]]


def batch_of(rows=ROWS, **more):
    long = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (long - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (long - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "id": torch.arange(len(rows)), **more}


def asker(fake, tmp_path, **options):
    options = {"classes": VOCABULARY, "top_logprobs": 5, "journal": tmp_path / "answers.jsonl", **options}
    teacher = Endpoint(fake.address, "tiny", **options)
    teacher.server.pause = 0.001
    return teacher


def check(sketch, model, rows=ROWS, top=5, last=True):
    """Every position: the true log-softmax of the known tokens, the `top` best among them, the exact mass of the rest."""
    for row, ids in enumerate(rows):
        table = truth(model, ids)
        for t in range(len(ids) - (not last)):
            known = sketch.log_probs[row, t] > -torch.inf
            found = dict(zip(sketch.ids[row, t][known].tolist(), sketch.log_probs[row, t][known].tolist()))
            assert set(table[t].topk(top).indices.tolist()) <= set(found)
            if t + 1 < len(ids):
                assert ids[t + 1] in found
            assert len(found) <= top + 1
            for token, value in found.items():
                assert value == pytest.approx(float(table[t, token]), abs=1e-6)
            rest = [float(table[t, i].exp()) for i in range(VOCABULARY) if i not in found]
            assert float(sketch.log_tail[row, t].exp()) == pytest.approx(sum(rest), abs=1e-7)
        assert (sketch.log_probs[row, len(ids) :] == -torch.inf).all()
        assert (sketch.log_tail[row, len(ids) :] == 0).all()


@pytest.mark.parametrize(("form", "strict"), [("prompt_logprobs", False), ("echo", False), ("echo", True)])
def test_the_sketch_is_the_models_own_distribution(form, strict, tmp_path):
    with served(form=form, strict=strict) as fake:
        teacher = asker(fake, tmp_path)
        sketch = teacher(batch_of())["logits"]
        check(sketch, fake.model)
        assert sketch.shape == (4, 8, VOCABULARY)
        assert teacher.probe(batch_of()) == {"logits": (8, VOCABULARY)}
        assert not sketch.sampled
        # One question settles the form, then one per row.
        assert len(fake.asked) == len(ROWS) + (form == "echo")


def test_tokens_reported_as_texts_are_found_by_the_tokenizer(tmp_path):
    """Texts that two tokens share are left to the rest, but the token that was sent is always known."""
    shared = lambda token: "same" if token in (20, 21) else f"<{token}>"  # noqa: E731
    with served(form="text", name=shared) as fake:
        teacher = asker(fake, tmp_path, top_logprobs=VOCABULARY)
        names = {f"<{token}>": token for token in range(VOCABULARY) if token not in (20, 21)}
        teacher.server.id_of = lambda text: names.get(text)
        rows = [[3, 20, 4, 21]]
        sketch = teacher(batch_of(rows))["logits"]
        table = truth(fake.model, rows[0])
        for t in range(4):
            known = set(sketch.ids[0, t][sketch.log_probs[0, t] > -torch.inf].tolist())
            expected = set(range(VOCABULARY)) - ({20, 21} - {(rows[0] + [0])[t + 1]})
            assert known == expected
            left = sum(float(table[t, token].exp()) for token in range(VOCABULARY) if token not in expected)
            assert float(sketch.log_tail[0, t].exp()) == pytest.approx(left, abs=1e-6)


def test_a_tokenizer_says_which_tokens_texts_are(tmp_path):
    tokens = Tokens(trained("byte-level"))
    with served(form="text", name=lambda token: tokens.decode([token])) as fake:
        teacher = asker(fake, tmp_path, tokenizer=tokens)
        assert teacher.tokenizer is tokens
        check(teacher(batch_of())["logits"], fake.model)
    assert Endpoint("http://x/v1", "tiny", tokenizer=tokens.tokenizer).classes == tokens.size


def test_all_classes_leave_no_tail(tmp_path):
    with served() as fake:
        sketch = asker(fake, tmp_path, top_logprobs=1000)(batch_of())["logits"]
        counted = batch_of()["attention_mask"].bool()
        assert (sketch.log_tail[counted] == -torch.inf).all()
        torch.testing.assert_close(sketch.log_probs.exp().sum(-1)[counted], torch.ones(int(counted.sum())))
        assert {body["logprobs"] for body in fake.asked} == {VOCABULARY}


def test_nothing_is_asked_twice(tmp_path):
    with served() as fake:
        teacher = asker(fake, tmp_path)
        first = teacher(batch_of([*ROWS, ROWS[0]]))["logits"]
        assert len(fake.asked) == len(ROWS)  # a row that stands twice is one question
        again = teacher(batch_of([*ROWS, ROWS[0]]))["logits"]
        other = asker(fake, tmp_path)(batch_of(ROWS[::-1]))["logits"]
        assert len(fake.asked) == len(ROWS)
        for name in ("ids", "log_probs", "log_tail"):
            assert torch.equal(getattr(first, name), getattr(again, name))
        check(other, fake.model, ROWS[::-1])
        asker(fake, tmp_path, top_logprobs=3)(batch_of())
        assert len(fake.asked) == 2 * len(ROWS)  # another question


def test_what_was_paid_survives_a_failure_in_the_middle(tmp_path):
    """The third question fails for good: two answers are kept, and only the others are asked again."""
    with served(troubles=[]) as fake:
        teacher = asker(fake, tmp_path, concurrency=1, tries=1)
        teacher(batch_of(ROWS[:2]))
        fake.troubles = [503]
        with pytest.raises(EndpointError, match=r"fails with status 503: trouble 503\. What it answered is kept"):
            teacher(batch_of())
        kept = len(Journal(tmp_path / "answers.jsonl"))
        assert kept >= 2
        asked = len(fake.asked)
        check(asker(fake, tmp_path)(batch_of())["logits"], fake.model)
        assert len(fake.asked) - asked == len(ROWS) - kept


def test_answers_under_way_are_kept_when_another_fails(tmp_path):
    with served(slow=0.05) as fake:
        teacher = asker(fake, tmp_path, concurrency=4, tries=1)
        teacher(batch_of([[1, 2]]))  # the form is settled
        fake.troubles = [500]
        with pytest.raises(EndpointError):
            teacher(batch_of())
        assert len(Journal(tmp_path / "answers.jsonl")) == 1 + 3


@pytest.mark.parametrize("concurrency", [1, 3])
def test_questions_go_out_together_but_no_more_than_allowed(concurrency, tmp_path):
    with served(slow=0.1) as fake:
        asker(fake, tmp_path, concurrency=concurrency)(batch_of([[n, n + 1] for n in range(1, 8)]))
        assert min(concurrency, 2) <= fake.most_at_once <= concurrency


@pytest.mark.parametrize("trouble", [429, 500, 502, 503, 408])
def test_passing_troubles_are_retried(trouble, tmp_path):
    with served(troubles=[trouble, trouble]) as fake:
        check(asker(fake, tmp_path)(batch_of(ROWS[:1]))["logits"], fake.model, ROWS[:1])
        assert len(fake.asked) == 3


def test_a_server_that_says_when_to_come_back_is_heard(tmp_path):
    with served(troubles=[429], retry_after=0.2) as fake:
        began = time.monotonic()
        asker(fake, tmp_path)(batch_of(ROWS[:1]))
        assert 0.2 <= time.monotonic() - began < 2


def test_a_slow_server_is_given_up_with_a_sentence(tmp_path):
    with served(slow=0.5) as fake:
        teacher = asker(fake, tmp_path, timeout=0.05, tries=2)
        with pytest.raises(EndpointError, match=r"did not answer within 0\.05 s, 2 times.*teacher\.timeout=600"):
            teacher(batch_of(ROWS[:1]))
        assert len(fake.asked) == 2


@pytest.mark.parametrize(
    ("behaviour", "options", "rows", "sentence"),
    [
        ({"most": 3}, {}, ROWS, r"asked for 5 log-probabilities per token and gives [34].*teacher\.top_logprobs="),
        ({"most": 3, "form": "echo"}, {}, ROWS, r"asked for 5 log-probabilities per token and gives [34]"),
        ({"form": "none"}, {}, ROWS, r"gives no log-probabilities of the tokens.*teacher\.prompt and teacher\.labels"),
        ({"adds": 1}, {}, ROWS, r"was sent \d tokens and answers about \d: tiny splits text with another tokenizer"),
        ({"adds": 1, "form": "echo"}, {}, ROWS, r"was sent \d tokens and answers about \d"),
        ({"shift": 1}, {}, [[1, 2, 3], [4, 5, 6]], r"answers about other tokens than it was sent"),
        ({"shift": 1, "form": "echo"}, {}, [[1, 2, 3]], r"answers about other tokens than it was sent"),
        ({"form": "text"}, {}, ROWS, r"reports tokens as texts \('<\d+>'\).*teacher\.tokenizer=PATH"),
        ({}, {}, [[1] * 65], r"refuses the question: This model's maximum context length is 64 tokens, not 65\."),
        ({"troubles": [401] * 8}, {}, ROWS, r"wants another key than OPENAI_API_KEY has: trouble 401\."),
    ],
)
def test_what_a_server_does_wrong_is_said(behaviour, options, rows, sentence, tmp_path):
    with served(**behaviour) as fake:
        top = 5 if "shift" not in behaviour else 2
        with pytest.raises(EndpointError, match=sentence):
            asker(fake, tmp_path, top_logprobs=top, **options)(batch_of(rows))
        assert len(Journal(tmp_path / "answers.jsonl")) == 0  # what cannot be used is no answer


def test_a_model_that_is_not_served_is_named_with_those_that_are(tmp_path):
    with served() as fake:
        teacher = Endpoint(fake.address, "tyni", classes=VOCABULARY, journal=tmp_path / "a.jsonl")
        with pytest.raises(
            EndpointError, match=r"does not know the model 'tyni': The model `tyni` does not exist\. It has: tiny\."
        ):
            teacher(batch_of())


def test_nobody_there(tmp_path):
    with served() as fake:
        address = fake.address
    fake.address = address
    with pytest.raises(EndpointError, match=r"cannot be reached .*2 times"):
        asker(fake, tmp_path, tries=2)(batch_of())
    with pytest.raises(RecipeError, match=r"teacher\.endpoint 'localhost:8000': needed is an address"):
        Endpoint("localhost:8000", "tiny", classes=3, journal=tmp_path / "b.jsonl")(batch_of())


def test_probabilities_of_more_than_one_are_refused(tmp_path):
    with served() as fake:
        fake.entries = lambda row, top, own: dict.fromkeys(range(5), -0.5) | ({} if own is None else {own: -0.5})
        with pytest.raises(EndpointError, match=r"probabilities that add up to 3\.\d+ for one token"):
            asker(fake, tmp_path)(batch_of())


def test_a_model_with_more_tokens_than_said(tmp_path):
    with served() as fake, pytest.raises(RecipeError, match=r"knows a token \d+, and teacher\.classes .* there are 10"):
        asker(fake, tmp_path, classes=10)(batch_of())
    with pytest.raises(RecipeError, match=r"does not say how many tokens.*teacher\.classes=152064"):
        Endpoint("http://x/v1", "tiny", journal=tmp_path / "b.jsonl").probe(batch_of())


def test_packed_documents_are_questions_of_their_own(tmp_path):
    with served() as fake:
        rows = [[*ROWS[0], *ROWS[2]], [*ROWS[1], 0, 0, 0, 0]]
        segment = torch.tensor([[0] * 8 + [1], [0] * 5 + [-1] * 4])
        sketch = asker(fake, tmp_path)(batch_of(rows, segment=segment))["logits"]
        assert sorted(body["prompt"] for body in fake.asked) == sorted(ROWS[:3])
        alone = asker(fake, tmp_path)(batch_of(ROWS[2:3]))["logits"]
        assert torch.equal(sketch.log_tail[0, 8], alone.log_tail[0, 0])
        assert (sketch.log_tail[1, 5:] == 0).all()


def test_the_teachers_own_columns_are_sent_where_there_are_any(tmp_path):
    with served() as fake:
        own = batch_of([[8, 8, 2]])
        mixed = batch_of() | {f"teacher_{name}": own[name] for name in ("input_ids", "attention_mask")}
        teacher = asker(fake, tmp_path)
        assert teacher.look_at(mixed).columns == ("teacher_input_ids", "teacher_attention_mask")
        assert teacher(mixed)["logits"].shape == (1, 3, VOCABULARY)
        assert [body["prompt"] for body in fake.asked] == [[8, 8, 2]]


def test_costs_are_counted_for_each_run(tmp_path):
    with served() as fake:
        teacher = asker(fake, tmp_path, price={"input": 1.0, "output": 10.0}, journal=None)
        teacher.keep_in(tmp_path / "runs" / "one")
        teacher(batch_of())
        tokens = sum(map(len, ROWS))
        assert teacher.spent == pytest.approx((tokens + 10 * len(ROWS)) / 1e6)
        linked = tmp_path / "runs" / "one" / "answers.jsonl"
        assert linked.samefile(next((tmp_path / "runs").glob("answers-tiny-*.jsonl")))

        other = asker(fake, tmp_path, price=5, journal=None)
        other.keep_in(tmp_path / "runs" / "two")
        other(batch_of())
        assert other.spent == 0  # asked by the run before
        resumed = asker(fake, tmp_path, price=5, journal=None)
        resumed.keep_in(tmp_path / "runs" / "one")
        assert resumed.spent == teacher.spent
        asked = len(fake.asked)

        moved = tmp_path / "elsewhere" / "one"
        moved.parent.mkdir()
        (tmp_path / "runs" / "one").rename(moved)
        far = asker(fake, tmp_path, journal=None)
        far.keep_in(moved)
        far(batch_of())
        assert len(fake.asked) == asked


def test_the_price_of_a_question():
    assert Price.of(None).usd((10, 10)) == 0
    assert Price.of(2).usd((1_000_000, 500_000)) == 3
    assert Price.of({"input": 1, "output": 3}).usd((1_000_000, 1_000_000)) == 4
    for wrong in ({"in": 1}, "cheap", -1, True, {"input": "1"}):
        with pytest.raises(RecipeError, match=r"US dollars per million tokens"):
            Price.of(wrong)


def test_nobody_pays_once_it_is_not_allowed(tmp_path):
    class OverError(Exception):
        pass

    def over():
        raise OverError

    with served() as fake:
        teacher = asker(fake, tmp_path)
        teacher(batch_of(ROWS[:2]))
        teacher.allowed = over
        teacher(batch_of(ROWS[:2]))  # what is known costs nothing
        with pytest.raises(OverError):
            teacher(batch_of())
        assert len(fake.asked) == 2


TEXTS = {"text": ["good", "bad", "meh", "good"], "id": torch.arange(4)}


def reviewer(fake, tmp_path, **options):
    options = {"prompt": "Is '{text}' one of {labels}?", "labels": ["yes", "no", "not sure"], **options}
    teacher = Endpoint(fake.address, "tiny", journal=tmp_path / "answers.jsonl", **options)
    teacher.server.pause = 0.001
    return teacher


def opinion(prompt):
    return {"good": "Yes.", "bad": "The answer is no", "meh": "**Not sure**"}[prompt.split("'")[1]]


@pytest.mark.parametrize("strict", [False, True])
def test_answers_in_words_become_labels(strict, tmp_path):
    with served(says=opinion, strict=strict) as fake:
        teacher = reviewer(fake, tmp_path)
        assert teacher.look_at(TEXTS).columns == ("text",)
        logits = teacher(TEXTS)["logits"]
        assert logits.argmax(-1).tolist() == [0, 1, 2, 0]
        torch.testing.assert_close(logits.softmax(-1), torch.eye(3)[[0, 1, 2, 0]], rtol=0, atol=1e-43)
        assert torch.isfinite(logits).all()
        asked = {body["messages"][0]["content"] for body in fake.asked}
        assert asked == {f"Is '{text}' one of yes, no, not sure?" for text in ("good", "bad", "meh")}
        assert teacher.probe(TEXTS) == {"logits": (3,)}
        sure = reviewer(fake, tmp_path, certainty=0.9)(TEXTS)["logits"].softmax(-1)
        torch.testing.assert_close(sure[0], torch.tensor([0.9, 0.05, 0.05]))
        assert {json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").open()} == {
            "Yes.",
            "The answer is no",
            "**Not sure**",
        }


def test_answers_that_name_no_label_are_counted(tmp_path):
    with served(says=lambda prompt: "Yes" if "bad" in prompt else "I cannot say") as fake:
        with pytest.raises(
            EndpointError,
            match=r"3 of 4 answers of tiny name none of the 3 labels, or several, for example 'I cannot say'",
        ):
            reviewer(fake, tmp_path)(TEXTS)
        asked = len(fake.asked)
        logits = reviewer(fake, tmp_path, unknown="uniform")(TEXTS)["logits"]
        assert len(fake.asked) == asked  # they were paid, and are kept
        torch.testing.assert_close(logits[0].softmax(-1), torch.full((3,), 1 / 3))
        assert logits[1].argmax() == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": None}, r"teacher\.labels does not name them"),
        ({"labels": ["one"]}, r"teacher\.labels does not name them"),
        ({"prompt": "Which of {labels}?"}, r"shows no column of the data"),
        ({"certainty": 0.2}, r"teacher\.certainty=0\.2: needed is more than 1/3"),
        ({"certainty": 1.2}, r"teacher\.certainty=1\.2"),
        ({"price": "much"}, r"US dollars per million tokens"),
    ],
)
def test_options_that_do_not_fit(options, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        Endpoint("http://x/v1", "m", **{"prompt": "{text}?", "labels": ["a", "b", "c"], **options})


def test_nothing_happens_inside_an_endpoint(tmp_path):
    teacher = Endpoint("http://x/v1", "tiny", classes=5, journal=tmp_path / "a.jsonl")
    for wrong in (
        lambda: teacher(batch_of(), replace={"hint": lambda x: x}),
        lambda: teacher(batch_of(), until="hint"),
        lambda: teacher(batch_of(), reads=["hidden"]),
        lambda: teacher.tap("hint", "layers.0"),
        lambda: teacher.shown(batch_of()),
        lambda: setattr(teacher, "mode", "through"),
        lambda: setattr(teacher, "learning", True),
        lambda: teacher.model(batch_of()),
    ):
        with pytest.raises(RecipeError):
            wrong()
    teacher.mode, teacher.learning = "frozen", False
    assert (teacher.mode, teacher.learning, teacher.members) == ("frozen", False, {"teacher": teacher})
    assert teacher.source.describe() == "tiny at http://x/v1"
    other = Endpoint("http://x/v1", "tiny", classes=5, top_logprobs=3, journal=tmp_path / "a.jsonl")
    assert teacher.fingerprint() != other.fingerprint()


def test_it_goes_to_another_process_with_its_journal(tmp_path):
    with served() as fake:
        teacher = asker(fake, tmp_path)
        teacher(batch_of())
        again = pickle.loads(pickle.dumps(teacher))
        assert again.journal.path == teacher.journal.path
        check(again(batch_of())["logits"], fake.model)
        assert len(fake.asked) == len(ROWS)


def test_the_first_question_alone_finds_the_form(tmp_path):
    """Eight at once, and the server refuses the form: one question finds out, and the others do not repeat its mistake."""
    with served(form="echo", strict=True, slow=0.01) as fake:
        rows = [[n, n + 1] for n in range(1, 9)]
        asker(fake, tmp_path, concurrency=8)(batch_of(rows))
        assert len(fake.asked) == 9
        assert threading.active_count() < 20


@pytest.mark.parametrize("name", ["openai", "tenacity"])
def test_without_its_libraries_it_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=rf"needs {name}: pip install 'limbeck\[endpoint\]'"):
        Endpoint("http://x/v1", "tiny", classes=5, journal=tmp_path / "a.jsonl")(batch_of())
