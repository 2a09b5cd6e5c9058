"""A small OpenAI-compatible server in a thread, around a random language model: what it answers is known exactly."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 37


def tiny(seed=0):
    """A random decoder with `VOCABULARY` tokens, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def truth(model, ids):
    """log softmax at every position, [tokens, classes]."""
    return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


class Fake:
    """How the server behaves, and what it was asked.

    `form`: `prompt_logprobs` as vLLM, `echo` with ids, `text` (echo with texts), `none` (no log-probabilities); `strict`
    refuses fields that it does not know. `most`: log-probabilities it gives at most. `troubles`: statuses to fail with
    first. `adds`: tokens it puts in front. `shift`: added to every id. `slow`: seconds. `says`: what it writes in a chat.
    """

    def __init__(self, model=None, **behaviour):
        self.model = model or tiny()
        self.form, self.strict, self.most, self.troubles, self.adds, self.shift, self.slow = (
            behaviour.pop(name, default)
            for name, default in (
                ("form", "prompt_logprobs"),
                ("strict", False),
                ("most", 99),
                ("troubles", []),
                ("adds", 0),
                ("shift", 0),
                ("slow", 0.0),
            )
        )
        self.says = behaviour.pop("says", lambda prompt: "yes")
        self.name = behaviour.pop("name", lambda token: f"<{token}>")
        self.retry_after = behaviour.pop("retry_after", None)
        assert not behaviour
        self.asked, self.at_once, self.most_at_once, self.address = [], 0, 0, ""
        self.lock = threading.Lock()

    def complete(self, body):
        known = {"model", "prompt", "max_tokens", "temperature", "logprobs", "echo"}
        if self.strict and set(body) - known:
            return 400, {"error": {"message": f"Unrecognized request argument: {sorted(set(body) - known)[0]}"}}
        ids, top = [0] * self.adds + [i + self.shift for i in body["prompt"]], min(body["logprobs"], self.most)
        if len(ids) > 64:
            return 400, {"error": {"message": f"This model's maximum context length is 64 tokens, not {len(ids)}"}}
        table = truth(self.model, ids)
        told = [None] + [
            self.entries(row, top, ids[t + 1] if t + 1 < len(ids) else None) for t, row in enumerate(table)
        ]
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
        written = int(table[-1].argmax())
        if self.form == "prompt_logprobs":
            if "prompt_logprobs" in body:
                choice["prompt_logprobs"] = [
                    at and {str(i): {"logprob": v, "rank": 1, "decoded_token": "?"} for i, v in at.items()}
                    for at in told[: len(ids)]
                ]
            choice["logprobs"] = self.listed([written], [told[-1]], [float(table[-1, written])])
        elif self.form in ("echo", "text") and body.get("echo"):
            own = [None] + [float(row[i]) for row, i in zip(table, ids[1:])] + [float(table[-1, written])]
            choice["logprobs"] = self.listed([*ids, written], told, own)
        elif self.form in ("echo", "text"):
            choice["logprobs"] = self.listed([written], [told[-1]], [float(table[-1, written])])
        return 200, {
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": 0},
        }

    def entries(self, row, top, own):
        values, ids = row.topk(min(top, len(row)))
        found = dict(zip(ids.tolist(), values.tolist()))
        return found if own is None else {**found, own: float(row[own])}

    def listed(self, ids, told, own):
        spelt = self.name if self.form == "text" else "token_id:{}".format
        tops = [at and {spelt(i): v for i, v in at.items()} for at in told]
        return {"tokens": [spelt(i) for i in ids], "token_logprobs": own, "top_logprobs": tops, "text_offset": []}

    def answer(self, path, body):
        with self.lock:
            self.asked.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            trouble = self.troubles.pop(0) if self.troubles else None
        try:
            time.sleep(self.slow)
            if trouble is not None:
                return trouble, {"error": {"message": f"trouble {trouble}"}}
            if body["model"] != "tiny":
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            if path.endswith("/chat/completions"):
                if self.strict and "max_tokens" in body:
                    return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'."}}
                message = {"role": "assistant", "content": self.says(body["messages"][-1]["content"])}
                usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
                return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            return self.complete(body)
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def served(**behaviour):
    """A running server; its address is `fake.address`."""
    fake = Fake(**behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.reply(*fake.answer(self.path, body))

        def reply(self, status, value):
            data = json.dumps({"id": "a", "created": 0, "model": "tiny", "object": "x", **value}).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status == 429 and fake.retry_after is not None:
                    self.send_header("retry-after", str(fake.retry_after))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has given up waiting

        def log_message(self, *what):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
