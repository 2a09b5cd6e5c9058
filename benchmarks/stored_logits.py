"""Stored logits of language models: bytes against what is lost, reading them, and a training step with them.

    python benchmarks/stored_logits.py [--out benchmarks/results/stored-logits.json]

The distribution is synthetic and stated (`stated`): 256 tokens over 32,000 classes, a power law of random slope with noise
and a gap at the top, the classes in random order, so nothing but the token itself tells which classes are likely. `heavier`
is the same with smaller slopes. What is lost is KL(teacher, reconstruction), the rest spread evenly; bytes are all bytes of
the sample, divided by its tokens. For draws, how far their cross-entropy for a student that is a noisy copy of the teacher
is from the true one: the mean over starts (unbiased: near 0) and the spread for one token.

The other tool's codec is written here from its description (k classes in fixed-width bits, some log-probabilities as they
are, a polynomial fit of the others, fitted in float64, which is the best case for it); `its_own` are the figures of the tool
itself on the first distribution, in float32, as it runs. Reading is timed on one thread: from bytes to ids and
log-probabilities per token, for us to a padded `Sketch`.

The step is forward and backward of the mean loss over 1024 tokens, V = 32000, k = 64: the student's hidden states (256
wide) and head against sketches, beside the whole matrix of both sides in plain torch (teacher 512 wide).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.caching.sketch.codec import Codec
from limbeck.caching.sketch.distillkit import Settings
from limbeck.losses import sketched
from limbeck.signals import Projection
from limbeck.sketches import Sketch

CLASSES = 32000
ITS_OWN = {"296": 0.1261, "108": 0.2346, "380": 0.1105, "1040": 0.0382}
PRICES = tuple(2.0**-j for j in (10, 11.5, 13, 13.5, 15, 16.5))


def stated(slope: float = 0.6, tokens: int = 256) -> Tensor:
    """Log-probabilities of the stated distribution; a smaller `slope` (its log, on average) is a heavier tail."""
    draw = np.random.default_rng(20260)
    slopes, gaps = np.exp(draw.normal(slope, 0.35, tokens)), draw.exponential(1.5, tokens)
    z = np.empty((tokens, CLASSES), np.float32)
    for t in range(tokens):
        row = -slopes[t] * np.log(np.arange(CLASSES) + 2.0) + draw.normal(0, 0.3, CLASSES)
        row[0] += gaps[t]
        z[t, draw.permutation(CLASSES)] = row
    return torch.from_numpy(z).log_softmax(-1)


def lost(log_p: Tensor, sketch: Sketch) -> float:
    """KL(teacher, reconstruction) in nats, the mean over tokens."""
    total = 0.0
    for start in range(0, len(log_p), 32):
        own = log_p[start : start + 32].double()
        total += float((own.exp() * (own - sketch[start : start + 32].expand().double())).sum())
    return total / len(log_p)


class Other:
    """The other tool's codec: `exact` values as bfloat16, a fit of the others by `terms` of their rank."""

    def __init__(self, k: int, exact: int, terms: list[int | str]):
        base = {"d": CLASSES, "k": k, "exact_k": exact, "exact_dtype": "bfloat16", "delta_encoding": False}
        self.layout = Settings.of(base | {"polynomial_terms": terms})
        self.k, self.exact, self.terms = k, exact, terms

    def fit(self, dtype: torch.dtype) -> Tensor:
        """What the fit is made of, [rank, term]."""
        t = torch.arange(self.k - self.exact, dtype=dtype)
        return torch.stack([t.sqrt() if term == "sqrt" else t ** int(term) for term in self.terms], -1)

    def encode(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """The two byte tensors of a token."""
        values, ids = log_p.topk(self.k, -1)
        x = torch.linalg.lstsq(self.fit(torch.float64), values[:, self.exact :].double().T).solution.T.float()
        exact = values[:, : self.exact].bfloat16().contiguous().view(torch.uint8)
        bits = ids[..., None] >> torch.arange(14, -1, -1) & 1
        packed = np.packbits(bits.flatten(1).to(torch.uint8).numpy(), axis=-1)
        return torch.cat([exact, x.contiguous().view(torch.uint8)], -1), torch.from_numpy(packed)

    def decode(self, log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """By its description: bytes to bits, bits times powers of two summed; polynomials evaluated; both joined."""
        bits = (ids[..., None] >> torch.arange(7, -1, -1) & 1).flatten(1)[:, : 15 * self.k].unflatten(1, (self.k, 15))
        classes = (bits * 2 ** torch.arange(14, -1, -1)).sum(-1)
        exact = log_probs[:, : 2 * self.exact].contiguous().view(torch.bfloat16)
        coefficients = log_probs[:, 2 * self.exact :].contiguous().view(torch.float32)
        fitted = (self.fit(torch.float32) * coefficients[:, None]).sum(-1)
        return classes, torch.cat([exact, fitted.bfloat16()], -1)


OTHERS = {
    "k 128, 16 exact, polynomial 0-4 + sqrt": Other(128, 16, [0, 1, 2, 3, 4, "sqrt"]),
    "k 50, 1 exact, polynomial 0, 1 + sqrt": Other(50, 1, [0, 1, "sqrt"]),
}


def curve(log_p: Tensor) -> dict[str, Any]:
    """Bytes and loss of everything, on one distribution."""
    found: dict[str, Any] = {"entropy": float(-(log_p.exp() * log_p).sum(-1).mean())}
    found["mass of the 128 most likely"] = float(log_p.exp().topk(128, -1).values.sum(-1).mean())
    for name, other in OTHERS.items():
        packed = other.encode(log_p)
        sketch = other.layout.sketch(*packed)
        found[f"other: {name}"] = {"bytes": sum(p.shape[1] for p in packed), "kl": lost(log_p, sketch)}
    for k in (64, 128):
        found[f"top {k}"] = one(Codec.top(CLASSES, k), log_p) | {
            "kl of exact values": lost(log_p, Sketch.top(log_p, k))
        }
    points = [one(Codec(CLASSES, 512, price=price), log_p) for price in PRICES]
    found["priced"] = points
    for size in (114, 400):
        found[f"at most {size} bytes"] = one(Codec.for_bytes(log_p, size), log_p)
    kl, size = zip(*sorted((np.log(point["kl"]), np.log(point["bytes"])) for point in points))
    within = [most for most in (0.2346, 0.1261, 0.1105, 0.0382) if kl[0] <= np.log(most) <= kl[-1]]
    found["bytes at the loss of"] = {str(most): float(np.exp(np.interp(np.log(most), kl, size))) for most in within}
    for draws in (64, 100):
        found[f"{draws} draws"] = drawn(log_p, draws)
    return found


def one(codec: Codec, log_p: Tensor) -> dict[str, float]:
    """Bytes for a token and what is lost; how many classes are kept."""
    packed = codec.encode(log_p)
    sketch = codec.decode([packed]).sketch()
    kept = sketch.known.sum(-1).float()
    return {"bytes": len(packed) / len(log_p), "kl": lost(log_p, sketch), "classes": float(kept.mean())}


def drawn(log_p: Tensor, draws: int) -> dict[str, float]:
    """Bytes of draws, and the error of their cross-entropy."""
    codec = Codec.drawn(CLASSES, draws)
    generator = torch.Generator().manual_seed(0)
    student = (log_p + torch.randn(log_p.shape, generator=generator)).log_softmax(-1)
    true = -(log_p.exp() * student).sum(-1)
    errors, size, unique = [], 0.0, 0.0
    for _ in range(5):
        packed = codec.encode(log_p, torch.rand(len(log_p), generator=generator))
        sketch = codec.decode([packed]).sketch()
        errors.append(sketched.cross_entropy(student, sketch) - true)
        size, unique = len(packed) / len(log_p), float(sketch.known.sum(-1).float().mean())
    found = torch.stack(errors)
    spread = float(found.std())
    return {
        "bytes": size,
        "classes": unique,
        "mean error of the cross-entropy": float(found.mean()),
        "its standard error": spread / found.numel() ** 0.5,
        "spread of one token": spread,
    }


def reading(log_p: Tensor, rounds: int) -> dict[str, float]:
    """Tokens per second on one thread, medians over rounds; 32 samples of 256 tokens at once."""
    torch.set_num_threads(1)
    sides: dict[str, Callable[[], Any]] = {}
    for name, other in OTHERS.items():
        packed = [p.repeat(32, 1) for p in other.encode(log_p)]
        sides[f"other: {name}"] = lambda other=other, packed=packed: other.decode(*packed)  # type: ignore[misc]
    codecs = {f"at most {size} bytes": Codec.for_bytes(log_p, size) for size in (114, 296)}
    codecs |= {"top 64": Codec.top(CLASSES, 64), "64 draws": Codec.drawn(CLASSES, 64)}
    for name, codec in codecs.items():
        samples = [codec.encode(log_p, torch.rand(len(log_p)))] * 32
        sides[name] = lambda codec=codec, samples=samples: codec.decode(samples).sketch()  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            begun = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return {name: 32 * len(log_p) / statistics.median(each) for name, each in seconds.items()}


def step(rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of a step and its share of the whole matrix, medians over rounds, elapsed and of all threads."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)

    def side(width: int) -> Projection:
        of = torch.randn(1024, width, generator=draw), torch.randn(CLASSES, width, generator=draw) * 3 / width**0.5
        return Projection(*of)

    own, teacher = side(256), side(512)
    own.hidden.requires_grad_(), own.weight.requires_grad_()
    sketch = Sketch.top(teacher.materialise(), 64)

    def whole() -> None:
        with torch.no_grad():
            log_p = teacher.materialise().log_softmax(-1)
        log_q = own.materialise().log_softmax(-1)
        (F.kl_div(log_q, log_p, log_target=True, reduction="sum") / len(log_q)).backward()

    sides: dict[str, Callable[[], Any]] = {
        "whole matrix, plain torch": whole,
        "sketch": lambda: sketched.kl(own, sketch).mean().backward(),
        "sketch, the rest spread": lambda: sketched.kl(own, sketch, tail="spread").mean().backward(),
        "sketch, logits multiplied out": lambda: sketched.kl(own.materialise(), sketch).mean().backward(),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            own.hidden.grad = own.weight.grad = None
            begun = time.perf_counter(), time.process_time()
            run()
            if turn:
                times[name].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    base = times["whole matrix, plain torch"]
    return {
        name: {
            "seconds": statistics.median(t[0] for t in each),
            "of the whole": statistics.median(t[0] / b[0] for t, b in zip(each, base)),
            "of the whole, by threads": statistics.median(t[1] / b[1] for t, b in zip(each, base)),
        }
        for name, each in times.items()
    }


def main() -> None:
    """All of it, printed and (with --out) written."""
    take = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take.add_argument("--rounds", type=int, default=5)
    take.add_argument("--threads", type=int, default=2)
    take.add_argument("--out", type=Path, help="parts that it holds already and that are not run again stay")
    take.add_argument("--parts", nargs="*", default=["step", "reading", "stated", "heavier"])
    asked = take.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: {"threads": asked.threads} | step(asked.rounds, asked.threads),
        "reading": lambda: reading(stated(), asked.rounds),
        "stated": lambda: curve(stated()),
        "heavier": lambda: curve(stated(0.2)),
    }
    found: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out and asked.out.is_file() else {}
    found["machine"] = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    found["its_own"] = ITS_OWN
    for name in asked.parts:
        found[name] = parts[name]()
        print(name, json.dumps(found[name], indent=1), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
