"""OFD: a comprehensive overhaul of feature distillation (Heo et al. 2019, arXiv 1904.01866)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck import layers
from limbeck.actors import Actor
from limbeck.bridges.as_map import as_map
from limbeck.bridges.maps import Resample
from limbeck.errors import RecipeError
from limbeck.losses.overhaul import expected_negative, partial_l2
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class OFD(layers.LayerTransfer):
    """task_weight * task + weight * sum over layers l = 1..n of 2^(l - n) partial_l2(BN(1x1(f_s)), f_t; margins).

    f are features **before** their ReLU. Of the teacher's responses the positive ones are met, the negative ones only
    reached from above, down to a margin per channel: the mean of the negative responses of a normal distribution with
    the mean and deviation that the batch normalisation before the ReLU gives (its bias and weight). The larger map of a
    pair is pooled to the smaller. Each layer is a **sum** over channels and positions, a mean over samples; the published
    weight is 1e-3 (CIFAR). The teacher runs in eval mode (the released code lets its running statistics drift).

    The places before the ReLUs and the normalisations are found by what the network computes; `norms` names the
    teacher's normalisations, one per layer, where another is meant. Where the shortcut of a residual block has a
    normalisation too, the one of the main branch counts. In-place ReLUs are made to write elsewhere, for they would
    overwrite what is compared.
    """

    card = Card(
        "ofd",
        summary="Features before their ReLU are matched where the teacher's are positive, and only undercut where they are negative.",
        paper="Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv 1904.01866",
        needs=("features before a ReLU, behind a batch normalisation",),
        use_when="convolutional networks with batch normalisation",
        cost="one forward pass of the teacher and a 1x1 convolution per layer and sample",
    )
    proposes = "stages"

    weight: Scalar = 1e-3
    norms: list[str] | None = None

    def prepare(self) -> None:
        layers.its_own_network(
            self.teacher, "ofd takes its margins from the batch normalisations of the teacher's network"
        )
        for actor in (self.student, self.teacher):
            for module in actor.all_modules():
                if isinstance(module, (nn.ReLU, nn.ReLU6)):
                    module.inplace = False
        super().prepare()
        norms: list[str | None] = [*self.norms] if self.norms is not None else [None] * len(self.pairs)
        if len(norms) != len(self.pairs):
            raise RecipeError(
                f"ofd.norms names {len(norms)} normalisations for {len(self.pairs)} layers; give one for each."
            )
        split = self.data.splits["train"]
        batch = split.__getitems__(list(range(min(4, len(split)))))
        heard = {
            actor.whose: layers.hear(actor, layers.on_device(actor, batch))[0] for actor in (self.student, self.teacher)
        }
        found, told = [], []
        self.norm_paths: list[str] = []
        for (ours, theirs), norm in zip(self.pairs, norms):
            student, _ = before_relu(self.student, ours, heard["student"])
            teacher, own = before_relu(self.teacher, theirs, heard["teacher"])
            if teacher is None or (norm or own) is None:
                what = "the place before the ReLU" if teacher is None else "a batch normalisation"
                raise RecipeError(
                    f"ofd compares the teacher's features before a ReLU, behind a batch normalisation; of '{theirs}' {what} was not found. "
                    "Name both: method.layers=[[place, place]], method.norms=[path] (limbeck inspect MODEL lists the paths)."
                )
            self.norm_paths.append(str(norm or own))
            found.append((layers.listen(self.student, student or ours), layers.listen(self.teacher, teacher)))
            told.append(f"{found[-1][0]} -> {found[-1][1]} with {self.norm_paths[-1]}")
        self.pairs = found
        self.notices.append(f"ofd, before the ReLUs: {', '.join(told)}. Others: method.layers, method.norms")

    def setup(self) -> None:
        super().setup()
        self.ours, self.theirs, self.connectors = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, ((ours, theirs), path) in enumerate(zip(self.pairs, self.norm_paths)):
            lay, (width, *size) = as_map(self.student.shapes[ours])
            target, (channels, *other) = as_map(self.teacher.shapes[theirs])
            common = Resample(tuple(min(a, b) for a, b in zip(size, other)))
            connector = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
            self.ours.append(nn.Sequential(lay, common))
            self.theirs.append(nn.Sequential(target, common))
            self.connectors.append(connector)
            self.register_buffer(f"margin{i}", margin_of(self.teacher.model.get_submodule(path), path, channels))

    def teacher_reads(self) -> set[str]:
        return {name for _, name in self.pairs}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        values: list[Tensor] = []
        for i, (ours, theirs) in enumerate(self.pairs):
            connected = self.connectors[i](self.ours[i](student[ours]))
            apart = partial_l2(connected, self.theirs[i](teacher[theirs]), margin=self.get_buffer(f"margin{i}"))
            values.append(apart * 2.0 ** (i + 1 - len(self.pairs)))
        return Loss.mean("partial_l2", torch.stack(values).sum(0))


def before_relu(actor: Actor, name: str, heard: list[layers.Heard]) -> tuple[str | None, str | None]:
    """The place of the features before their ReLU, and the batch normalisation behind which they stand, for a signal.

    A signal with negative entries is before its ReLU already. Else the input of the ReLU (or the output of the
    normalisation) is looked for whose ReLU the signal is. None where nothing is found.
    """
    path = actor.paths.get(name, name)
    if path.endswith(":input"):
        module = path.removesuffix(":input")
        at = next((i for i, h in enumerate(heard) if h.where == module), len(heard))
        before = heard[:at]
        return path, _norm(before, None)
    last = {h.path: i for i, h in enumerate(heard)}  # of a module that is called several times, the last call
    if path not in last:
        return None, None
    at, value = last[path], heard[last[path]].value
    if (value < 0).any():
        return path, _norm(heard[: at + 1], value)
    for i in reversed(range(at + 1)):
        h = heard[i]
        if last[h.path] != i or h.value.shape != value.shape:
            continue
        if isinstance(h.module, (nn.ReLU, nn.ReLU6)) and torch.equal(h.value, value):
            return f"{h.path}:input", _norm(heard[:i], value)
        if isinstance(h.module, _BatchNorm) and torch.equal(h.value.relu(), value):
            return h.path, h.path
    return None, None


def _norm(before: list[layers.Heard], value: Tensor | None) -> str | None:
    """The last normalisation; of two whose sum the value is, the first, for the other one is that of a shortcut."""
    norms = [h for h in before if isinstance(h.module, _BatchNorm) and (value is None or h.value.shape == value.shape)]
    if len(norms) > 1 and value is not None:
        both = norms[-2].value + norms[-1].value
        if torch.allclose(both.relu(), value.relu(), rtol=1e-4, atol=1e-5):
            return norms[-2].path
    return norms[-1].path if norms else None


def margin_of(norm: nn.Module, path: str, channels: int) -> Tensor:
    """The margin per channel behind this batch normalisation.

    Raises:
        RecipeError: it is none, or of another number of channels.
    """
    if not isinstance(norm, _BatchNorm) or norm.num_features != channels:
        raise RecipeError(
            f"ofd.norms: {path} is a {type(norm).__name__}; needed is a batch normalisation of {channels} channels, those of the layer it belongs to."
        )
    if norm.weight is None:
        return expected_negative(torch.zeros(channels), torch.ones(channels))
    return expected_negative(norm.bias.detach(), norm.weight.detach())
