"""Denoisers for small data: the exact one of a mixture of Gaussians, and networks for points and for 8x8 pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion.network import Conditional
from limbeck.diffusion.noise import wide

Points = Float[Tensor, "batch dims"]


class Mixture(Conditional):
    """The exact denoiser of a mixture of Gaussians N(mu_k, s_k^2 I): a teacher that needs no training.

    E[x0 | x_t] = sum_k r_k (mu_k + alpha s_k^2 / v_k (x_t - alpha mu_k)), v_k = alpha^2 s_k^2 + sigma^2,
    r_k proportional to w_k N(x_t; alpha mu_k, v_k I). With `labels` (the class of each component) it is conditional.

    Args:
        means: the components' means, [components, dims].
        std: one for all components, or one each.
        weights: of the components; None: equal.
        labels: the class of each component.
    """

    means: Tensor
    std: Tensor
    log_weights: Tensor
    component_class: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        std: float | Sequence[float] | Tensor,
        *,
        weights: Sequence[float] | Tensor | None = None,
        labels: Sequence[int] | None = None,
        noise: Any = "flow",
    ) -> None:
        mu = torch.as_tensor(means, dtype=torch.float32)
        super().__init__(noise, "x0", classes=max(labels) + 1 if labels else None, shape=mu.shape[1:])
        w = torch.ones(len(mu)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        self.register_buffer("means", mu)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).expand(len(mu)).clone())
        self.register_buffer("log_weights", (w / w.sum()).log())
        self.register_buffer("component_class", torch.tensor(labels if labels else [0] * len(mu)))

    def predict(self, x: Points, t: Float[Tensor, "batch"], condition: Tensor | None = None, **given: Tensor) -> Points:
        mu, s = self.means.to(x.dtype), self.std.to(x.dtype)
        alpha, sigma = wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x)
        var = alpha**2 * s**2 + sigma**2  # [batch, components]
        apart = x.unsqueeze(1) - alpha.unsqueeze(2) * mu
        log = self.log_weights.to(x.dtype) - apart.square().sum(2) / (2 * var) - mu.shape[1] / 2 * var.log()
        if condition is not None:
            own = (self.component_class == condition.unsqueeze(1)) | condition.eq(self.classes or 0).unsqueeze(1)
            log = log.masked_fill(~own, -torch.inf)
        means = mu + (alpha * s**2 / var).unsqueeze(2) * apart
        return (log.softmax(1).unsqueeze(2) * means).sum(1)

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Points, Tensor]:
        """Samples of the mixture itself, and the classes (or components) they are of."""
        k = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        x = self.means[k] + self.std[k, None] * torch.randn(count, self.means.shape[1], generator=generator)
        return x, self.component_class[k] if self.classes else k


def ring(modes: int = 8, radius: float = 1.0, std: float = 0.05, **options: Any) -> Mixture:
    """Gaussians on a circle."""
    angles = torch.arange(modes) * 2 * math.pi / modes
    return Mixture(radius * torch.stack([angles.cos(), angles.sin()], 1), std, **options)


class Embedding(nn.Module):
    """Numbers per sample as sines and cosines of geometrically spaced frequencies, then a layer."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 16, top: float = 30.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, math.log10(top), features), persistent=False)
        self.layer = nn.Linear(2 * features, width)

    def forward(self, values: Float[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
        angles = values.to(self.layer.weight.dtype).unsqueeze(1) * self.frequencies.to(self.layer.weight.dtype)
        return self.layer(torch.cat([angles.sin(), angles.cos()], 1))


class Small(Conditional):
    """What the small networks share: times (as shares), classes and further numbers, as one embedding.

    Args:
        also: names of further inputs, a number per sample (a second time, a guidance scale, a teacher's number);
            their embeddings begin at zero, so a network that was trained without them says the same.
    """

    def __init__(
        self,
        width: int,
        noise: Any = "flow",
        head: str = "velocity",
        *,
        classes: int | None = None,
        shape: Sequence[int] | None = None,
        data_std: float = 0.5,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(noise, head, classes=classes, shape=shape, data_std=data_std)
        self.time = Embedding(width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.further = nn.ModuleDict({name: Embedding(width) for name in also})
        for module in self.further.values():
            nn.init.zeros_(module.layer.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(module.layer.bias)  # type: ignore[union-attr, arg-type]

    def embedded(self, t: Float[Tensor, "batch"], given: dict[str, Tensor]) -> Float[Tensor, "batch width"]:
        """The sum of the embeddings of time, class and whatever else is given."""
        h = self.time(self.noise.share(t))
        if self.label is not None:
            h = h + self.label(given["condition"])
        for name, module in self.further.items():
            if name in given:
                h = h + module(given[name])
        return h


class PointDenoiser(Small):
    """A perceptron for points [batch, dims]: the embedding is added in every hidden layer."""

    def __init__(self, dims: int = 2, width: int = 128, depth: int = 3, **options: Any) -> None:
        super().__init__(width, **{"shape": (dims,)} | options)
        self.inputs = nn.Linear(dims, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, dims)
        self.middle = f"hidden.{depth - 2}" if depth > 1 else "inputs"

    def predict(self, x: Points, t: Float[Tensor, "batch"], **given: Tensor) -> Points:
        e = self.embedded(t, given)
        h = F.silu(self.inputs(x) + e)
        for layer in self.hidden:
            h = h + F.silu(layer(h) + e)
        return self.output(h)


class _Block(nn.Module):
    """Two convolutions with a skip, the embedding added between them."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(width, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embedding(F.silu(e))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class PictureDenoiser(Small):
    """A U-Net of two resolutions for pictures of 8x8 or so, [batch, channels, height, width]; sides divide by 2."""

    def __init__(self, channels: int = 1, size: int = 8, width: int = 32, **options: Any) -> None:
        super().__init__(4 * width, **{"shape": (channels, size, size)} | options)
        self.inputs = nn.Conv2d(channels, width, 3, padding=1)
        self.down = _Block(width, width, 4 * width)
        self.smaller = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.inner = nn.ModuleList(_Block(2 * width, 2 * width, 4 * width) for _ in range(2))
        self.middle = "inner.1"
        self.larger = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = _Block(2 * width, width, 4 * width)
        self.norm, self.output = nn.GroupNorm(8, width), nn.Conv2d(width, channels, 3, padding=1)

    def predict(
        self, x: Float[Tensor, "batch channels height width"], t: Float[Tensor, "batch"], **given: Tensor
    ) -> Float[Tensor, "batch channels height width"]:
        e = self.embedded(t, given)
        wide_ = self.down(self.inputs(x), e)
        h = self.smaller(wide_)
        for block in self.inner:
            h = block(h, e)
        h = self.up(torch.cat([wide_, self.larger(h)], 1), e)
        return self.output(F.silu(self.norm(h)))
