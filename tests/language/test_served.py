"""A server as sampler: a small one in a thread writes with a known model, slowly, with errors, or less than was asked."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from small_models import END, PAD, SIZE, Words, batch_of, llama

from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler, sample
from limbeck.language.served import InProcess, Served
from limbeck.randomness import seeds_for
from limbeck.teachers.asking import EndpointError

PROMPTS = [([2, 3, 4], [5, 6, END]), ([7, 8], [9, END]), ([4, 4, 4, 4, 5], [3])]


class Spelling(Words):
    """Tokens 2 to 10 are spelt c to k."""

    def encode(self, text):
        return [ord(letter) - 97 for letter in text]


class Fake:
    """Writes greedily with a model. `form`: ids (vLLM), named (`token_id:N`), text (OpenAI's own, refuses what it does not know).

    `troubles`: statuses to fail with first; `slow`: seconds; `change`: what is done to an answer before it is sent.
    """

    def __init__(self, form="ids", troubles=(), slow=0.0, change=lambda choice: choice):
        self.model, self.form, self.troubles, self.slow, self.change = llama(), form, list(troubles), slow, change
        self.asked, self.lock, self.address = [], threading.Lock(), ""

    def answer(self, body):
        with self.lock:
            self.asked.append(body)
            trouble = self.troubles.pop(0) if self.troubles else None
        time.sleep(self.slow)
        if trouble:
            return trouble, {"error": {"message": f"trouble {trouble}"}}
        if self.form == "text" and "return_token_ids" in body:
            return 400, {"error": {"message": "Unrecognized request argument: return_token_ids"}}
        ids, known = list(body["prompt"]), []
        with torch.no_grad():
            while len(known) < body["max_tokens"]:
                log_p = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(log_p.argmax()))
                known.append(float(log_p.max()))
                if ids[-1] == END:
                    break
        new = ids[len(body["prompt"]) :]
        stop = new[-1] == END
        shown = new[:-1] if stop and self.form == "text" else new
        names = [chr(97 + t) if self.form == "text" else f"token_id:{t}" for t in shown]
        choice = {
            "index": 0,
            "text": "".join(chr(97 + t) for t in shown),
            "finish_reason": "stop" if stop else "length",
            "logprobs": {"tokens": names, "token_logprobs": known[: len(shown)], "top_logprobs": [], "text_offset": []},
        }
        if self.form == "ids":
            choice["token_ids"] = new
        choice = self.change(choice)
        return 200, {"choices": [choice] if choice else [], "usage": None}


@contextmanager
def serving(**behaviour):
    fake = Fake(**behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, value = fake.answer(body)
            data = json.dumps({"id": "a", "created": 0, "model": "m", "object": "x", **value}).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # whoever asked has given up waiting

        def log_message(self, *what):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    fake.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def asked(fake, vocabulary=None, *, batch=None, options=None, **sampling):
    how = Sampler(**({"max_new_tokens": 6} | sampling))
    served = Served(fake.address, "m", pause=0.01, **(options or {}))
    batch = batch or batch_of(PROMPTS)
    return how(served, vocabulary or Spelling(), batch, seeds_for(batch["id"], 1, 2))


@pytest.mark.parametrize("form", ["ids", "named", "text"])
def test_a_server_writes_what_the_model_here_would(form):
    """It is greedy whatever it is told, so that what it must give is known; log-probabilities are the model's own."""
    expected = sample(llama(), Words(), batch_of(PROMPTS), max_new_tokens=6, temperature=0)
    with serving(form=form) as fake:
        found = asked(fake)
    for name in ("input_ids", "attention_mask", "target", "answer", "answer_bytes", "id"):
        assert torch.equal(found[name], expected[name]), name
    if form == "text":
        assert "old_log_probs" not in found
        return
    log_p = llama()(found["input_ids"]).logits.log_softmax(-1)
    said = log_p.gather(-1, found["target"].clamp(min=0).unsqueeze(-1)).squeeze(-1) * found["answer"]
    torch.testing.assert_close(found["old_log_probs"], said, rtol=0, atol=1e-5)


def test_every_prompt_is_asked_once_as_ids_with_a_seed_of_its_own():
    with serving() as fake:
        asked(fake, temperature=0.7, top_p=0.9, top_k=5)
        first = {tuple(body["prompt"]): body["seed"] for body in fake.asked}
        asked(fake, batch=batch_of(PROMPTS[1:], first=1))
    assert sorted(first) == sorted(tuple(prompt) for prompt, _ in PROMPTS)
    assert len(set(first.values())) == 3
    assert all(0 <= seed < 2**31 for seed in first.values())
    for body in fake.asked[:3]:
        assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.7, 0.9, 5, 6)
    assert all(body["seed"] == first[tuple(body["prompt"])] for body in fake.asked[3:])


def test_raw_log_probabilities_are_those_of_the_draw_at_temperature_one_only():
    with serving() as fake:
        assert "old_log_probs" in asked(fake)
        for restriction in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 3}):
            assert "old_log_probs" not in asked(fake, **restriction)
        assert "old_log_probs" in asked(fake, temperature=0.7, options={"log_probs": "processed"})


def test_what_a_plain_server_refuses_is_not_asked_again():
    with serving(form="text") as fake:
        served, how, batch = Served(fake.address, "m", concurrency=1), Sampler(max_new_tokens=3), batch_of(PROMPTS)
        for _ in range(2):
            how(served, Spelling(), batch, batch["id"])
    assert ["return_token_ids" in body for body in fake.asked] == [True] + [False] * 6


def test_errors_that_pass_are_waited_out():
    with serving(troubles=[500, 429, 503]) as fake:
        found = asked(fake)
    assert len(fake.asked) == 6
    assert found["answer"].any(1).all()


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ({"troubles": [500] * 99}, "fails with status 500: trouble 500"),
        ({"troubles": [400] * 99}, "refuses the question: .*trouble 400"),
        ({"slow": 0.5}, "did not answer within 0.05 s, 2 times"),
        ({"change": lambda choice: None}, "answered without an answer"),
        ({"change": lambda c: c | {"token_ids": [2, SIZE]}}, f"wrote token {SIZE}, and the tokenizer here has {SIZE}"),
        ({"change": lambda c: c | {"token_ids": c["token_ids"] * 2}}, "tokens and gives log-probabilities of"),
    ],
)
def test_what_lasts_is_a_sentence(behaviour, sentence):
    with serving(**behaviour) as fake, pytest.raises(EndpointError, match=sentence):
        asked(fake, options={"tries": 2, "timeout": 0.05 if "slow" in behaviour else 10})


def test_fewer_tokens_than_asked_are_what_there_is():
    """Cut off by the server's own limit: the text has no end, and nothing is made up in its place."""

    def short(choice):
        told = choice["logprobs"]
        told = told | {"tokens": told["tokens"][:2], "token_logprobs": told["token_logprobs"][:2]}
        return choice | {"token_ids": choice["token_ids"][:2], "logprobs": told, "finish_reason": "length"}

    expected = sample(llama(), Words(), batch_of(PROMPTS), max_new_tokens=2, temperature=0)
    with serving(change=short) as fake:
        found = asked(fake)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["target"], expected["target"])


def test_an_answer_without_a_word():
    """Stopped at once and not a token shown: the end alone. Cut off before the first token: nothing is counted."""
    nothing = {"token_ids": [], "text": "", "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": []}}
    with serving(change=lambda c: c | nothing | {"finish_reason": "stop"}) as fake:
        found = asked(fake)
    assert found["target"][found["answer"]].tolist() == [END] * 3
    with serving(change=lambda c: c | nothing | {"finish_reason": "length"}) as fake:
        found = asked(fake)
    assert not found["answer"].any()
    assert found["attention_mask"].sum(1).tolist() == [3, 2, 5]
    assert set(found["input_ids"][found["attention_mask"] == 0].tolist()) <= {PAD}


def test_the_context_is_kept():
    with serving() as fake:
        found = asked(fake, context=6)
    assert found["attention_mask"].sum(1).max() <= 6
    assert {len(body["prompt"]) + body["max_tokens"] for body in fake.asked} <= {6, 8}


def test_what_a_server_cannot_do_is_refused():
    with serving() as fake:
        for option in ({"beams": 2}, {"teacher_share": 0.5}):
            with pytest.raises(RecipeError, match="neither beams nor a teacher's share"):
                asked(fake, **option)
        assert not fake.asked


def test_without_vllm_a_sentence_says_what_to_do():
    with pytest.raises(RecipeError, match="pip install vllm, or let it serve"):
        InProcess("model")
