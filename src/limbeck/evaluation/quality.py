"""How good a model's answers are: figures from its outputs and the targets.

Every figure is a function ``(outputs, target) -> float``; nan where it is not defined (a correlation with a constant,
a kappa on one class). A task's figures are a table of such functions, so that a run can ask for all of them and
validation for one.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import RecipeError, nearest
from limbeck.evaluation import generation

Figure = Callable[[Tensor, Tensor], float]


def accuracy(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """Share of samples whose largest logit is the target's, in [0, 1]; ties go to the first class."""
    return _predicted(logits, target).eq(target).double().mean().item()


def f1_weighted(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """F1 of each class, averaged with the classes' shares of the targets as weights, in [0, 1]."""
    from sklearn.metrics import f1_score

    return float(f1_score(target.cpu(), _predicted(logits, target).cpu(), average="weighted", zero_division=0))


def mean_class_accuracy(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """Mean over the classes that occur of the share of their samples found (balanced accuracy), in [0, 1]."""
    right = _predicted(logits, target).eq(target).double()
    classes, place = target.unique(return_inverse=True)
    found = torch.zeros(len(classes), dtype=torch.float64, device=target.device).index_add_(0, place, right)
    return (found / place.bincount(minlength=len(classes))).mean().item()


def kappa(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e): agreement with the target beyond chance, in [-1, 1].

    p_o is the accuracy, p_e the accuracy that the two marginals would give by chance. nan where p_e = 1.
    Source: Cohen 1960, "A coefficient of agreement for nominal scales", eq. 1.
    """
    from sklearn.metrics import cohen_kappa_score

    predicted = _predicted(logits, target)
    if torch.cat([predicted, target]).unique().numel() < 2:
        return math.nan
    return float(cohen_kappa_score(target.cpu(), predicted.cpu()))


def nll(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """Mean negative log-likelihood of the target in nats, -mean log softmax(logits)[target]; at least 0."""
    _predicted(logits, target)
    return F.cross_entropy(logits.double(), target).item()


def f1_micro(logits: Float[Tensor, "batch labels"], target: Tensor) -> float:
    """F1 over all (sample, label) decisions together; a label is predicted where its logit is above 0."""
    return _multilabel_f1(logits, target, "micro")


def f1_macro(logits: Float[Tensor, "batch labels"], target: Tensor) -> float:
    """Mean over labels of the F1 of each; a label neither predicted nor present counts as 0."""
    return _multilabel_f1(logits, target, "macro")


def mean_average_precision(logits: Float[Tensor, "batch labels"], target: Tensor) -> float:
    """Mean over the labels that occur of the area under precision over recall, in [0, 1]; nan if none occurs."""
    from sklearn.metrics import average_precision_score

    present = target.bool().any(0)
    if not present.any():
        return math.nan
    scores = logits.double()[:, present].cpu().numpy()
    return float(average_precision_score(target.bool()[:, present].cpu().numpy(), scores, average="macro"))


def exact_match(logits: Float[Tensor, "batch labels"], target: Tensor) -> float:
    """Share of samples on which every label is right, in [0, 1]."""
    return logits.gt(0).eq(target.bool()).all(1).double().mean().item()


def binary_nll(logits: Float[Tensor, "batch labels"], target: Tensor) -> float:
    """Mean over samples and labels of the binary cross-entropy in nats; at least 0."""
    return F.binary_cross_entropy_with_logits(logits.double(), target.double()).item()


def mse(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """Mean squared error, in the target's unit squared."""
    predicted, target = _columns(predicted, target)
    return F.mse_loss(predicted, target).item()


def rmse(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """Root of the mean squared error, in the target's unit."""
    return math.sqrt(mse(predicted, target))


def mae(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """Mean absolute error, in the target's unit."""
    predicted, target = _columns(predicted, target)
    return F.l1_loss(predicted, target).item()


def r2(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """1 - squared error / variance of the target, at most 1; mean over outputs, nan where a target is constant."""
    predicted, target = _columns(predicted, target)
    spread = (target - target.mean(0)).square().sum(0)
    share = (predicted - target).square().sum(0) / spread
    return (1 - torch.where(spread > 0, share, math.nan)).mean().item()


def pearson(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """Linear correlation in [-1, 1]; mean over outputs, nan where a column is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, target)


def spearman(predicted: Float[Tensor, "batch ..."], target: Tensor) -> float:
    """Correlation of ranks in [-1, 1]; mean over outputs, nan where a column is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, target)


def miou(
    logits: Float[Tensor, "batch classes *space"], target: Int[Tensor, "batch *space"], *, ignore_index: int = 255
) -> float:
    """Intersection over union per class, over all pixels together, averaged over the classes that occur.

    A class occurs if it is in the target or in the prediction; pixels of ``ignore_index``, and those below zero, count
    nowhere. In [0, 1], nan if no pixel counts.
    Source: Everingham et al. 2015, "The PASCAL VOC challenge: a retrospective", section 3.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    predicted, target = _pixels(logits, target, ignore_index)
    table = multiclass_confusion_matrix(predicted, target, num_classes=logits.shape[1]).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return (table.diagonal() / union)[union > 0].mean().item()


def pixel_accuracy(
    logits: Float[Tensor, "batch classes *space"], target: Int[Tensor, "batch *space"], *, ignore_index: int = 255
) -> float:
    """Share of the pixels that count whose largest logit is the target's, in [0, 1]."""
    predicted, target = _pixels(logits, target, ignore_index)
    return predicted.eq(target).double().mean().item()


def bits_per_byte(sums: Float[Tensor, "batch 3"], size: Int[Tensor, "batch"]) -> float:
    """Nats / (bytes ln 2) over all tokens that count: comparable between tokenizers. nan where nothing counts.

    `sums` and `size` are the outputs of a language task (`Task.outputs`), here and below.
    """
    return sums[:, 0].double().sum().item() / (size.sum().item() * math.log(2)) if size.sum() else math.nan


def token_nll(sums: Float[Tensor, "batch 3"], size: Int[Tensor, "batch"]) -> float:
    """Mean of -log p over the tokens that count, in nats: comparable only under one tokenizer."""
    nats, tokens, _ = sums.double().sum(0).tolist()
    return nats / tokens if tokens else math.nan


def perplexity(sums: Float[Tensor, "batch 3"], size: Int[Tensor, "batch"]) -> float:
    """exp of the mean of -log p per token."""
    return math.exp(min(token_nll(sums, size), 700.0))


def token_accuracy(sums: Float[Tensor, "batch 3"], size: Int[Tensor, "batch"]) -> float:
    """Share of the tokens that count which are the most probable one, in [0, 1]."""
    _, tokens, hits = sums.double().sum(0).tolist()
    return hits / tokens if tokens else math.nan


_LANGUAGE: Mapping[str, Figure] = {
    "bits_per_byte": bits_per_byte,
    "nll": token_nll,
    "perplexity": perplexity,
    "token_accuracy": token_accuracy,
}


def _of_samples(measure: Callable[[Tensor, Tensor], float], most: int = 2048) -> Figure:
    """A distance between generated and real samples, of the first `most`: it looks at all pairs. The last two columns are no features."""
    return lambda outputs, target: measure(outputs[:most, :-2], target[:most])


def _neighbours(name: str) -> Figure:
    def measure(generated: Tensor, real: Tensor) -> float:
        return generation.neighbourhoods(generated, real)[name] if min(len(generated), len(real)) > 3 else math.nan

    return _of_samples(measure)


def sample_diversity(outputs: Float[Tensor, "samples columns"], target: Tensor) -> float:
    """Mean distance between two generated samples of one class."""
    few = outputs[:2048]
    return generation.diversity(few[:, :-2], few[:, -2])


def seen_as_meant(outputs: Float[Tensor, "samples columns"], target: Tensor) -> float:
    """Share of generated samples that the classifier takes for what they were to be; nan without one."""
    return float(outputs[:, -1].nanmean())


_GENERATION: Mapping[str, Figure] = {
    "mmd": _of_samples(generation.mmd),
    "sliced_wasserstein": _of_samples(generation.sliced_wasserstein, 1 << 40),
    "frechet": _of_samples(generation.frechet, 1 << 40),
    "kernel_distance": _of_samples(generation.kernel_distance),
    **{name: _neighbours(name) for name in ("precision", "recall", "density", "coverage")},
    "diversity": sample_diversity,
    "conditional_accuracy": seen_as_meant,
}
FIGURES: Mapping[str, Mapping[str, Figure]] = {
    "classification": {
        "accuracy": accuracy,
        "f1_weighted": f1_weighted,
        "mean_class_accuracy": mean_class_accuracy,
        "kappa": kappa,
        "nll": nll,
    },
    "multilabel": {
        "f1_micro": f1_micro,
        "f1_macro": f1_macro,
        "map": mean_average_precision,
        "exact_match": exact_match,
        "nll": binary_nll,
    },
    "regression": {"mse": mse, "rmse": rmse, "mae": mae, "r2": r2, "pearson": pearson, "spearman": spearman},
    "segmentation": {"miou": miou, "pixel_accuracy": pixel_accuracy},
    "chat": _LANGUAGE,
    "text": _LANGUAGE,
    "generation": _GENERATION,
}
LOWER_IS_BETTER = frozenset(
    {
        *("bits_per_byte", "perplexity", "nll", "mse", "rmse", "mae", "ece", "brier", "kl_to_teacher"),
        *("mmd", "sliced_wasserstein", "frechet", "kernel_distance"),
    }
)


@dataclass(frozen=True)
class Metric:
    """One figure by name, with its direction: ``metric(outputs, target) -> float``."""

    name: str
    measure: Figure
    higher_is_better: bool

    def __call__(self, outputs: Tensor, target: Tensor) -> float:
        return self.measure(outputs, target)


def primary(metric: str, task: str | None = None) -> Metric:
    """The metric of this name, by which retention and the best epoch are judged.

    ``task`` decides where two tasks share a name (``nll``); without it the first in the order of `FIGURES` is meant.

    Raises:
        RecipeError: no task, or not this one, has a metric of this name.
    """
    tables = list(FIGURES.values()) if task is None else [_table(task)]
    for table in tables:
        if metric in table:
            return Metric(metric, table[metric], metric not in LOWER_IS_BETTER)
    known = [name for table in tables for name in table]
    where = "" if task is None else f" of {task}"
    raise RecipeError(f"unknown metric '{metric}'{where}. {nearest(metric, known)}")


def figures(task: str, outputs: Tensor, target: Tensor) -> dict[str, float]:
    """All figures of a task: classification, multilabel, regression or segmentation.

    Raises:
        RecipeError: unknown task, no samples, or labels that the outputs have no class for.
    """
    return {name: measure(outputs, target) for name, measure in _table(task).items()}


def _table(task: str) -> Mapping[str, Figure]:
    if task not in FIGURES:
        raise RecipeError(f"there are no quality figures for the task '{task}'. {nearest(task, FIGURES)}")
    return FIGURES[task]


def _predicted(logits: Tensor, target: Tensor) -> Tensor:
    if len(logits) != len(target) or not len(target):
        raise RecipeError(
            f"figures need one target for each answer and at least one: {len(logits)} answers and "
            f"{len(target)} targets were given."
        )
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= logits.shape[1]:
        raise RecipeError(
            f"the targets run from {low} to {high}, but the model answers for {logits.shape[1]} classes, "
            f"0 to {logits.shape[1] - 1}. Give the model as many classes as the data have labels."
        )
    return logits.argmax(1)


def _multilabel_f1(logits: Tensor, target: Tensor, average: str) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(target.bool().cpu(), logits.gt(0).cpu(), average=average, zero_division=0))


def _columns(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    predicted, target = (x.double().reshape(len(x), -1) if len(x) else x for x in (predicted, target))
    if predicted.shape != target.shape or not len(target):
        raise RecipeError(
            f"figures need predictions and targets of one shape and at least one sample: "
            f"{list(predicted.shape)} and {list(target.shape)} were given."
        )
    return predicted, target


def _correlation(measure: Callable, predicted: Tensor, target: Tensor) -> float:
    predicted, target = _columns(predicted, target)
    if len(target) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant column gives nan, which is the answer
        pairs = zip(predicted.T.cpu().numpy(), target.T.cpu().numpy())
        return statistics.fmean(float(measure(one, other).statistic) for one, other in pairs)


def _pixels(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    counts = (target != ignore_index) & (target >= 0)
    return logits.argmax(1)[counts], target[counts]
