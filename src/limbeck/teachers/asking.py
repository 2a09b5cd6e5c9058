"""What is sent to an OpenAI-compatible server and how its answers are read: retried, counted, and checked before use."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from limbeck.errors import RecipeError

FORMS = ("prompt_logprobs", "echo")
LENGTHS = ("max_tokens", "max_completion_tokens")
_ID = re.compile(r"token_id:(\d+)\Z")
_MORE_THAN_ALL = 1.02  # what rounding to half precision may add up to
_LONGEST_ANSWER = 64


class EndpointError(RuntimeError):
    """The endpoint did not give what was asked of it; what it gave before is kept. The message is a sentence."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens that are sent (`input`) and that are written (`output`)."""

    input: float = 0.0
    output: float = 0.0

    @classmethod
    def of(cls, given: Price | float | Mapping[str, float] | None) -> Price:
        """A price out of one number for both, or `{input: 0.15, output: 0.6}`.

        Raises:
            RecipeError: another key, or something that is no amount.
        """
        if isinstance(given, Price) or given is None:
            return given or cls()
        parts = dict(given) if isinstance(given, Mapping) else {"input": given, "output": given}
        good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in parts.values())
        if not good or parts.keys() - {"input", "output"}:
            raise RecipeError(
                f"teacher.price {given!r}: needed are US dollars per million tokens, {{input: 0.15, output: 0.6}}, or one number for both."
            )
        return cls(**{name: float(value) for name, value in parts.items()})

    def usd(self, usage: tuple[int, int]) -> float:
        """What so many tokens in and out cost."""
        return (usage[0] * self.input + usage[1] * self.output) / 1e6


@dataclass
class Server:
    """One model behind an OpenAI-compatible server.

    Args:
        endpoint: its address, `http://host:8000/v1`; without a path `/v1` is added. The key is read from OPENAI_API_KEY.
        model: the name under which it serves the model.
        timeout: seconds to wait for one answer.
        tries: how often one question is asked in all, when the server is overloaded, fails, or does not answer.
        id_of: from a token's text to its id, for servers that report texts and not ids; None where it is ambiguous.
    """

    endpoint: str
    model: str
    timeout: float = 120.0
    tries: int = 6
    id_of: Callable[[str], int | None] | None = None
    pause: float = 1.0
    _client: Any = field(default=None, init=False, repr=False)
    _form: str | None = field(default=None, init=False, repr=False)
    _settling: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def continuations(self, ids: list[int], top: int) -> dict[str, Any]:
        """For every position t of `ids` the `top` most probable tokens t+1 and their log-probabilities.

        Returns:
            `ids` and `log_probs`, a list per position (the last one may be empty, where the server does not write a
            token), and `usage`, the tokens that were paid for.

        Raises:
            EndpointError: no answer, an error, fewer log-probabilities than asked for, none, or about other tokens.
        """

        def send(form: str) -> tuple[Any, dict[str, Any] | None]:
            own = {"echo": True} if form == "echo" else {}
            more = {"return_tokens_as_token_ids": True, "prompt_logprobs": top} if form != "echo" else {}
            reply = self._patiently(
                lambda client: client.completions.create(
                    model=self.model, prompt=ids, max_tokens=1, temperature=0, logprobs=top, extra_body=more, **own
                )
            )
            return reply, (self._read_echo if form == "echo" else self._read_prompt)(reply.choices[0], ids, top)

        found = self._settled(FORMS, send, ids)
        if found is None:
            raise EndpointError(
                f"{self.endpoint} gives no log-probabilities of the tokens it is sent for {self.model} (neither prompt_logprobs nor echo). "
                "Such a server can only answer in words: teacher.prompt and teacher.labels; or serve the model with vLLM."
            )
        return found

    def words(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """What the model writes, as `text`, and `usage`."""

        def send(form: str) -> tuple[Any, dict[str, Any] | None]:
            length: dict[str, Any] = {form: _LONGEST_ANSWER}
            reply = self._patiently(
                lambda client: client.chat.completions.create(
                    model=self.model, messages=messages, temperature=0, **length
                )
            )
            return reply, {"text": reply.choices[0].message.content or ""}

        found = self._settled(LENGTHS, send, [])
        assert found is not None
        return found

    def _settled(
        self, forms: Iterable[str], send: Callable[[str], tuple[Any, dict[str, Any] | None]], ids: list[int]
    ) -> dict[str, Any] | None:
        """Ask in the form that this server understands; the first question finds out which, and nobody else asks until then."""
        openai = _library()
        with nullcontext() if self._form else self._settling:
            usage, refused = (0, 0), None
            for form in [self._form] if self._form else forms:
                try:
                    reply, found = send(form)
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    refused = error
                    continue
                refused, told = None, reply.usage
                spent = (told.prompt_tokens, told.completion_tokens) if told else (len(ids), 1)
                usage = (usage[0] + spent[0], usage[1] + spent[1])
                if found is not None:
                    self._form = form
                    return found | {"usage": list(usage)}
            if refused is not None:
                raise EndpointError(f"{self.endpoint} refuses the question: {_message(refused)}") from refused
            return None

    def _read_prompt(self, choice: Any, ids: list[int], top: int) -> dict[str, Any] | None:
        """vLLM's `prompt_logprobs`: an entry per prompt token, keyed by id, always with the token itself."""
        told = getattr(choice, "prompt_logprobs", None)
        if not told:
            return None
        self._check_count(len(told), ids)
        positions = [{int(key): float(entry["logprob"]) for key, entry in (at or {}).items()} for at in told[1:]]
        for position, token in zip(positions, ids[1:]):
            if token not in position:
                raise EndpointError(self._other_tokens())
        last = choice.logprobs.top_logprobs if choice.logprobs else None
        positions.append(self._by_id(last[-1]) if last and last[-1] else {})
        counts = [len(at or ()) for at in (*told[1:], *((last or ())[-1:]))]
        return self._checked(positions, counts, top)

    def _read_echo(self, choice: Any, ids: list[int], top: int) -> dict[str, Any] | None:
        """`echo` with `logprobs`: entries for the prompt's tokens and for the one written after it, keyed by text or `token_id:N`."""
        told = choice.logprobs
        if told is None or not told.top_logprobs or len(told.tokens or ()) < 2:
            return None
        self._check_count(len(told.tokens) - (len(told.tokens) == len(ids) + 1), ids)
        for token, text in zip(ids, told.tokens):
            known = _ID.match(text)
            if known and int(known[1]) != token:
                raise EndpointError(self._other_tokens())
        positions = []
        for t, entries in enumerate(told.top_logprobs[1:], 1):
            text, own = told.tokens[t], told.token_logprobs[t]
            position = self._by_id({k: v for k, v in (entries or {}).items() if t >= len(ids) or k != text})
            if t < len(ids) and own is not None:
                position[ids[t]] = float(own)
            positions.append(position)
        positions += [{}] * (len(ids) - len(positions))
        shared = 0 if _ID.match(told.tokens[0]) else top // 10  # tokens of the same text are one entry
        return self._checked(positions, [len(entries or ()) + shared for entries in told.top_logprobs[1:]], top)

    def _by_id(self, entries: Mapping[str, float]) -> dict[int, float]:
        """Entries by token id; those whose text could be several tokens are left to the rest."""
        found: dict[int, float] = {}
        for text, value in entries.items():
            known = _ID.match(text)
            if known is None and self.id_of is None:
                raise EndpointError(
                    f"{self.endpoint} reports tokens as texts ({text!r}), and which ids they are only the tokenizer tells: teacher.tokenizer=PATH "
                    "(vLLM reports ids with --return-tokens-as-token-ids)."
                )
            token = int(known[1]) if known else self.id_of(text)  # type: ignore[misc]
            if token is not None:
                found[token] = float(value)
        return found

    def _checked(self, positions: list[dict[int, float]], counts: list[int], top: int) -> dict[str, Any]:
        most = max(counts, default=top)
        if most < top:
            raise EndpointError(
                f"{self.endpoint} was asked for {top} log-probabilities per token and gives {most}. "
                f"Ask for as many as it gives, teacher.top_logprobs={most}, or let it give more (vLLM: --max-logprobs {top})."
            )
        for position in positions:
            total = sum(math.exp(value) for value in position.values())
            if total > _MORE_THAN_ALL:
                raise EndpointError(
                    f"{self.endpoint} gives probabilities that add up to {total:.3g} for one token: these are not the model's own log-probabilities."
                )
        return {"ids": [list(p) for p in positions], "log_probs": [list(p.values()) for p in positions]}

    def _check_count(self, count: int, ids: list[int]) -> None:
        if count != len(ids):
            raise EndpointError(
                f"{self.endpoint} was sent {len(ids)} tokens and answers about {count}: {self.model} splits text with another tokenizer, or adds "
                "tokens of its own. Take the teacher's own columns (teacher.view), and a server that keeps token ids as they are."
            )

    def _other_tokens(self) -> str:
        return (
            f"{self.endpoint} answers about other tokens than it was sent: {self.model} has another tokenizer than the one that made these "
            "ids. Show it the teacher's own columns (teacher.view=[teacher_input_ids, teacher_attention_mask])."
        )

    def _patiently(self, ask: Callable[[Any], Any]) -> Any:
        """Ask again when the server is overloaded, fails or does not answer, with growing pauses, or as long as it says."""
        import openai
        import tenacity

        growing = tenacity.wait_random_exponential(multiplier=self.pause, max=60)

        def wait(state: tenacity.RetryCallState) -> float:
            told = getattr(state.outcome.exception() if state.outcome else None, "response", None)
            after = told.headers.get("retry-after", "") if told is not None else ""
            return min(float(after), 600.0) if re.fullmatch(r"\d+(\.\d+)?", after) else growing(state)

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            stop=tenacity.stop_after_attempt(self.tries),
            wait=wait,
            reraise=True,
        )
        try:
            return tries(ask, self._connected())
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except openai.OpenAIError as error:
            raise EndpointError(self._told(error)) from error

    def _connected(self) -> Any:
        if self._client is None:
            openai = _library()
            parts = urlsplit(self.endpoint)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise RecipeError(f"teacher.endpoint '{self.endpoint}': needed is an address, http://host:8000/v1.")
            base = self.endpoint if parts.path.strip("/") else f"{self.endpoint.rstrip('/')}/v1"
            key = os.environ.get("OPENAI_API_KEY") or "none"
            self._client = openai.OpenAI(base_url=base, api_key=key, timeout=self.timeout, max_retries=0)
        return self._client

    def _told(self, error: Exception) -> str:
        import openai

        again = "What it answered is kept; the same command goes on."
        if isinstance(error, openai.APITimeoutError):
            return (
                f"{self.endpoint} did not answer within {self.timeout:g} s, {self.tries} times. {again} "
                "Give it more time (teacher.timeout=600) or fewer questions at once (teacher.concurrency=1)."
            )
        if isinstance(error, openai.AuthenticationError):
            return f"{self.endpoint} wants another key than OPENAI_API_KEY has: {_message(error)}"
        if isinstance(error, openai.NotFoundError):
            return f"{self.endpoint} does not know the model '{self.model}': {_message(error)} {self._models()}"
        if isinstance(error, openai.RateLimitError):
            return f"{self.endpoint} takes no more questions ({self.tries} times): {_message(error)} {again}"
        if isinstance(error, openai.APIStatusError):
            return f"{self.endpoint} fails with status {error.status_code}: {_message(error)} {again}"
        if isinstance(error, openai.APIConnectionError):
            return f"{self.endpoint} cannot be reached ({error.__cause__ or error}), {self.tries} times. {again}"
        return f"{self.endpoint} gave no proper answer: {error} {again}"

    def _models(self) -> str:
        import openai

        try:
            names = [model.id for model in self._connected().models.list().data]
        except openai.OpenAIError:
            return "It does not say which models it has."
        return f"It has: {', '.join(names[:10])}."


def _library() -> Any:
    try:
        import openai
        import tenacity  # noqa: F401 - used as soon as something is asked
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"a teacher behind an endpoint needs {error.name}: pip install 'limbeck[endpoint]'"
        ) from error
    return openai


def _passes(error: BaseException) -> bool:
    """Whether the same question may well be answered a little later."""
    import openai

    if isinstance(error, openai.RateLimitError):
        return error.code != "insufficient_quota"
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    return isinstance(error, openai.APIConnectionError)


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, Mapping) else {}
    said = str(body.get("message") or body.get("error") or error).strip()
    return (said if len(said) <= 300 else f"{said[:300]}...").rstrip(".") + "."
