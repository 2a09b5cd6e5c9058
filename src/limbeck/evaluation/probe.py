"""What a denoising network has understood: a linear classifier on the features of one layer at one noise level, both chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.actors import Actor
from limbeck.data.tensors import Data, Split
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.diffusion.selfconditioned import pooled
from limbeck.errors import RecipeError
from limbeck.layers import on_device
from limbeck.randomness import fold, normal
from limbeck.signals import Place, Tap, select

Features = Float[Tensor, "samples channels"]
Labels = Int[Tensor, "samples"]


class Linear:
    """Multinomial logistic regression on standardised features: the least of sum_i -log p(y_i) + penalty / 2 |W|^2, the bias free.

    Features that do not vary count for nothing. Fitted in float64 by L-BFGS (scikit-learn).

    Raises:
        RecipeError: fewer than two classes.
    """

    def __init__(self, features: Features, labels: Labels, penalty: float = 1.0) -> None:
        from sklearn.linear_model import LogisticRegression

        if len(labels.unique()) < 2:
            raise RecipeError("a linear probe tells classes apart, and the training rows are all of one class.")
        x = features.double()
        spread = x.std(0, correction=0)
        self.mean, self.scale = x.mean(0), torch.where(spread > 1e-12, spread, torch.inf)
        self.model = LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-8)
        self.model.fit(self._standard(features), labels.numpy())

    def probabilities(self, features: Features) -> Float[Tensor, "samples classes"]:
        """p(class), the classes in rising order."""
        return torch.from_numpy(self.model.predict_proba(self._standard(features)))

    def accuracy(self, features: Features, labels: Labels) -> float:
        """The share of rows whose most probable class is theirs."""
        return float(self.model.score(self._standard(features), labels.numpy()))

    def _standard(self, features: Features) -> Any:
        return ((features.double() - self.mean) / self.scale).numpy()


def probe(
    network: DiffusionNetwork | Actor,
    data: Data,
    layers: Sequence[str],
    times: Sequence[float],
    *,
    target: str = "label",
    penalty: float = 1.0,
    batch_size: int = 256,
) -> dict[str, Any]:
    """The best linear classifier on pooled features of noisy rows: `{layer, time, validation, test}`, accuracies in [0, 1].

    Fitted on the split `train`; layer and time are those of the best accuracy on `validation` (the first of equals); only that one
    meets `test`. The noise of a row is decided by its number alone. The network is shown no condition (a class would give the answer
    away), runs in eval mode, and is left as it was.

    Args:
        network: a denoising network, or an actor of one.
        layers: paths, as taps have them; maps and tokens are pooled to their mean.
        times: of the network's own schedule. Best is seldom the least.
        target: the column of classes.
        penalty: of the classifier's weights; see `Linear`.

    Raises:
        RecipeError: no such layer, no candidates, or a network that cannot do without its condition.
    """
    actor = network if isinstance(network, Actor) else Actor(network)
    denoiser = Denoiser(actor)
    if denoiser.model.conditions != "none" and not denoiser.model.guidable:
        raise RecipeError(
            f"the {type(denoiser.model).__name__} cannot do without its condition, which would tell a linear probe what it is to find out. "
            "Give a network that was trained with dropped conditions, or without any."
        )
    if not layers or not times:
        raise RecipeError("a linear probe needs at least one layer and one time to choose from.")

    splits = {name: data[name] for name in ("train", "validation", "test")}

    def heard(split: str, t: float, paths: Sequence[str]) -> tuple[dict[str, Features], Labels]:
        return _features(denoiser, splits[split], t, paths, target, batch_size)

    best: dict[str, Any] = {}
    for t in times:
        (train, label), (held, held_label) = heard("train", t, layers), heard("validation", t, layers)
        for layer in layers:
            fitted = Linear(train[layer], label, penalty)
            found = fitted.accuracy(held[layer], held_label)
            if not best or found > best["validation"]:
                best = {"layer": layer, "time": t, "validation": found, "fitted": fitted}
    fitted = best.pop("fitted")
    unseen, label = heard("test", best["time"], [best["layer"]])
    return best | {"test": fitted.accuracy(unseen[best["layer"]], label)}


@torch.no_grad()
def _features(
    denoiser: Denoiser, split: Split, time: float, layers: Sequence[str], target: str, batch_size: int
) -> tuple[dict[str, Features], Labels]:
    """Pooled values of layers for all rows of a split, noised to one level, and their classes."""
    model = denoiser.model
    places = {layer: Tap(layer).resolve(model) for layer in layers}
    now: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    labels: list[Tensor] = []
    modes = [(module, module.training) for module in model.modules()]

    def listen(layer: str, place: Place) -> RemovableHandle:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            now[layer] = pooled(select(args[0] if place.input else output, place.keys))

        return model.get_submodule(place.module).register_forward_hook(note)

    handles = [listen(layer, place) for layer, place in places.items()]
    model.eval()
    try:
        for begin in range(0, len(split), batch_size):
            batch = on_device(denoiser.actor, split.__getitems__(range(begin, min(begin + batch_size, len(split)))))
            x0, given = denoiser.shown(batch)
            if x0 is None or target not in batch:
                raise RecipeError(
                    f"a linear probe needs data and the column '{target}' of their classes; the rows have {', '.join(batch)}."
                )
            t = torch.full((len(x0),), time, device=x0.device)
            eps = normal(fold(batch["id"], 0x70), *x0.shape[1:]).to(x0)
            drop = torch.ones(len(x0), dtype=torch.bool, device=x0.device) if model.guidable else None
            denoiser(denoiser.noise.renoise(x0, t, eps), t, given, drop=drop)
            labels.append(batch[target].cpu())
            for layer, parts in found.items():
                parts.append(now[layer].double().cpu())
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return {layer: torch.cat(parts) for layer, parts in found.items()}, torch.cat(labels)
