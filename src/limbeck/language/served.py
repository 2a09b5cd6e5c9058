"""Rollouts written elsewhere: by an OpenAI-compatible server (vLLM's, say), or by vLLM in this process.

Both stand where a `Sampler` takes a model: `sampler(Served("http://host:8000/v1", "name"), vocabulary, batch, seeds)`. They
write with the weights they were given. A student that learns is elsewhere soon: `InProcess.renew` brings new weights; a
server has to be told by its own means, and until then its rollouts are those of an older student, which their
log-probabilities say.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from torch import nn

from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler, Vocabulary
from limbeck.teachers.asking import EndpointError, Server

Answer = tuple[list[int], list[float] | None]
_IDS = "token_id:"


class Served:
    """A model behind an OpenAI-compatible `completions` endpoint, asked once per prompt, with the row's own seed.

    Prompts go out as token ids. Ids come back where the server gives them (vLLM); else its text is split by the
    tokenizer at hand, which may be another splitting than the one that was drawn, so that no log-probability is known.
    A text that stopped of itself ends with the end token, whether or not the server says so.

    Args:
        endpoint: its address, `http://host:8000/v1`. The key is read from OPENAI_API_KEY.
        model: the name under which it serves the model.
        log_probs: what the server's log-probabilities are of: `raw` (of the model at temperature 1; vLLM's default) or
            `processed` (of what was drawn from; vLLM with --logprobs-mode processed_logprobs). Raw ones are only known
            to be those of the draw at temperature 1 without restrictions, and are not given elsewhere.
        concurrency: how many prompts are asked at once.
        timeout, tries, pause: of one question, see `limbeck.teachers.asking.Server`.

    Raises:
        EndpointError: no answer, an error that lasts, tokens that are not the tokenizer's, or log-probabilities of
            other tokens than it gives.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        log_probs: Literal["raw", "processed"] = "raw",
        concurrency: int = 16,
        timeout: float = 120.0,
        tries: int = 6,
        pause: float = 1.0,
    ):
        self.server = Server(endpoint, model, timeout=timeout, tries=tries, pause=pause)
        self.log_probs, self.concurrency = log_probs, concurrency
        self._plain = False  # whether the server knows nothing but what OpenAI's own does

    def continued(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampler: Sampler, vocabulary: Vocabulary
    ) -> list[Answer]:
        """For every prompt: the tokens that were written, with the end where there is one, and their log-probabilities."""
        if sampler.beams > 1 or sampler.teacher_share > 0:
            raise RecipeError(
                "a server draws from its own model: neither beams nor a teacher's share can be had there."
            )
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = [pool.submit(self._one, list(p), s, sampler, vocabulary) for p, s in zip(prompts, seeds)]
            try:
                return [one.result() for one in asked]
            except BaseException:
                for one in asked:
                    one.cancel()
                raise

    def _one(self, prompt: list[int], seed: int, sampler: Sampler, vocabulary: Vocabulary) -> Answer:
        most = sampler.max_new_tokens
        if sampler.context is not None:
            most = min(most, sampler.context - len(prompt))
        question: dict[str, Any] = {
            "model": self.server.model,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "seed": seed % 2**31,
            "logprobs": 1,
        }
        more = {"return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": False}
        restricted = {"top_k": sampler.top_k} if sampler.top_k else {}
        reply = self._asked(question, more | restricted, restricted)
        if not reply.choices:
            raise EndpointError(f"{self.server.endpoint} answered without an answer in it (no choices).")
        return self._read(reply.choices[0], most, sampler, vocabulary)

    def _asked(self, question: dict[str, Any], more: dict[str, Any], restricted: dict[str, Any]) -> Any:
        """With what vLLM understands; where a server refuses that, with OpenAI's own words, from then on at once."""
        import openai

        refusals = (openai.BadRequestError, openai.UnprocessableEntityError)
        forms = [restricted] if self._plain else [more, restricted]
        for form in forms:
            try:
                reply = self.server._patiently(partial(_complete, question=question, extra_body=form))
            except refusals as error:
                refused = error
                continue
            self._plain = form is restricted
            return reply
        raise EndpointError(f"{self.server.endpoint} refuses the question: {refused}") from refused

    def _read(self, choice: Any, most: int, sampler: Sampler, vocabulary: Vocabulary) -> Answer:
        told = choice.logprobs
        names = list(told.tokens or ()) if told is not None else []
        ids = getattr(choice, "token_ids", None)
        if ids is None and names and all(name.startswith(_IDS) for name in names):
            ids = [int(name.removeprefix(_IDS)) for name in names]
        known = list(told.token_logprobs or ()) if told is not None and ids is not None else None
        if ids is None:
            ids = vocabulary.encode(choice.text)  # type: ignore[attr-defined]
        ids = [int(token) for token in ids]
        strange = [token for token in ids if not 0 <= token < vocabulary.size]
        if strange:
            raise EndpointError(
                f"{self.server.endpoint} wrote token {strange[0]}, and the tokenizer here has {vocabulary.size}: "
                f"{self.server.model} has another one. Serve the model that the tokenizer belongs to."
            )
        if known is not None and (len(known) != len(ids) or any(value is None for value in known)):
            raise EndpointError(
                f"{self.server.endpoint} wrote {len(ids)} tokens and gives log-probabilities of {sum(v is not None for v in known)}."
            )
        if choice.finish_reason == "stop" and vocabulary.eos and (not ids or ids[-1] not in vocabulary.eos):
            ids, known = [*ids, vocabulary.eos[0]], None  # how probable the end was it did not say
        exact = self.log_probs == "processed" or (
            sampler.temperature == 1 and sampler.top_p == 1 and sampler.top_k == 0
        )
        return ids[:most], [float(value) for value in known[:most]] if known is not None and exact else None


class InProcess:
    """vLLM in this process, on a device of its own or with little of this one: `InProcess("path", gpu_memory_utilization=0.3)`.

    Not tested here: vLLM needs a GPU and packages of its own. Written for vLLM 0.10 and later; log-probabilities are
    asked for as processed, so they are those of the draw.
    """

    def __init__(self, model: str, **options: Any):
        try:
            from vllm import LLM  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise RecipeError(
                "vLLM is not installed: pip install vllm, or let it serve the model elsewhere and take Served."
            ) from error
        self.engine = LLM(model, **({"logprobs_mode": "processed_logprobs"} | options))

    def renew(self, model: nn.Module) -> None:
        """Write with the weights that the student has now."""
        worker = self.engine.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights((name, p.detach()) for name, p in model.named_parameters())
        self.engine.reset_prefix_cache()

    def continued(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampler: Sampler, vocabulary: Vocabulary
    ) -> list[Answer]:
        """As `Served.continued`."""
        from vllm import SamplingParams

        if sampler.beams > 1 or sampler.teacher_share > 0:
            raise RecipeError("vLLM draws from its own model: neither beams nor a teacher's share can be had there.")
        how = [
            SamplingParams(
                max_tokens=sampler.max_new_tokens,
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                top_k=sampler.top_k or -1,
                seed=seed % 2**31,
                logprobs=0,
                stop_token_ids=list(vocabulary.eos),
                detokenize=False,
            )
            for seed in seeds
        ]
        outputs = self.engine.generate([{"prompt_token_ids": list(p)} for p in prompts], how, use_tqdm=False)
        found: list[Answer] = []
        for output in outputs:
            text = output.outputs[0]
            ids = list(text.token_ids)
            found.append((ids, [float(at[token].logprob) for token, at in zip(ids, text.logprobs)]))
        return found


def _complete(client: Any, *, question: dict[str, Any], extra_body: dict[str, Any]) -> Any:
    return client.completions.create(**question, extra_body=extra_body)
