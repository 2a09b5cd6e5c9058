"""What the tests of trajectory methods share: a whole run on the mixture, and exact networks of one Gaussian."""

import json

import torch
from points import MEANS, points

import limbeck
from limbeck.data.tensors import Data
from limbeck.diffusion.network import Conditional
from limbeck.diffusion.noise import wide

FORMULA = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.2, "labels": [0, 1, 2]}}
PERCEPTRON = {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8, "classes": 3}}


def rows():
    """Training and validation rows of the mixture, and these again as the test."""
    made = points()
    splits = dict(made.splits) | {"test": made.splits["validation"]}
    return Data(splits, {"x": "points", "label": ""}, {"label": ["a", "b", "c"]}, source="points")


def run(method, out, **changes):
    """A short run without a control: its folder's result, and the run."""
    recipe = {
        "task": "generation",
        "data": rows,
        "teacher": FORMULA,
        "student": PERCEPTRON,
        "train": {"epochs": 1, "batch_size": 11, "lr": 1e-3},
        "control": "none",
        "seed": 1,
    }
    made = limbeck.distill(**recipe | changes, method=method, out=out)
    return json.loads((made.folder / "result.json").read_text()), made


class Ends(Conditional):
    """The exact consistency function of N(mean, std^2): where the probability flow ends."""

    def __init__(self, mean, std, noise):
        super().__init__(noise, "x0")
        self.mean, self.std = mean, std

    def predict(self, x, t, **given):
        alpha, sigma = wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x)
        return self.mean + self.std / (alpha**2 * self.std**2 + sigma**2).sqrt() * (x - alpha * self.mean)


def play(method, batch):
    """The updates of one step, without performing them."""
    with torch.no_grad():
        return list(method.learn(batch, method.progress))


def instead(denoiser, model):
    """Let a denoiser be another network."""
    denoiser.actor.model = denoiser.model = model
