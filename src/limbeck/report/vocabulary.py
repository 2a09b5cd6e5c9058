"""What the figures are called, what they mean and how they are written; the roles and what they are drawn with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limbeck.report import numbers


@dataclass(frozen=True)
class Word:
    """A figure in words: its name, whether it is a share of 1, which way is better, and one line that explains it; or a whole number."""

    name: str
    is_share: bool
    higher_is_better: bool
    meaning: str
    is_count: bool = False

    def write(self, value: Any) -> str:
        if self.is_count:
            return numbers.count(value)
        return numbers.share(value) if self.is_share else numbers.plain(value, zeros=True)

    def tick(self, value: float) -> str:
        """On an axis, where the numbers are round."""
        return numbers.plain(100 * value) + f"{numbers.THIN}%" if self.is_share else numbers.plain(value)

    def tick_difference(self, value: float) -> str:
        return ("+" if value > 0 else "") + numbers.plain(100 * value if self.is_share else value)

    def difference(self, value: Any) -> str:
        return numbers.points(value) if self.is_share else numbers.signed(value)

    def size(self, value: float) -> str:
        """How far from zero, without a sign."""
        return self.difference(abs(value)).lstrip("+")


FIGURES = {
    "accuracy": Word("accuracy", True, True, "share of samples whose class is right"),
    "f1_weighted": Word("weighted F1", True, True, "F1 per class, weighted by how often the class occurs"),
    "mean_class_accuracy": Word("mean class accuracy", True, True, "accuracy per class, every class counting the same"),
    "kappa": Word("Cohen’s kappa", False, True, "agreement with the truth beyond chance, 1 at best"),
    "nll": Word("negative log-likelihood", False, False, "surprise at the truth, in nats"),
    "ece": Word("calibration error", True, False, "distance between confidence and accuracy, over 15 bins"),
    "brier": Word("Brier score", False, False, "squared distance of the probabilities from the truth, 0 to 2"),
    "agreement": Word("agreement with the teacher", True, True, "share of samples on which both name the same class"),
    "kl_to_teacher": Word("KL from the teacher", False, False, "distance of the student’s probabilities, in nats"),
    "logit_correlation": Word("logit correlation", False, True, "correlation with the teacher’s centred logits"),
    "label_loyalty": Word("label loyalty", True, True, "accuracy when the teacher’s choices are the truth"),
    "probability_loyalty": Word(
        "probability loyalty", False, True, "1 minus the root of the Jensen-Shannon divergence"
    ),
    "f1_micro": Word("micro F1", True, True, "F1 over all decisions together"),
    "f1_macro": Word("macro F1", True, True, "F1 per label, every label counting the same"),
    "map": Word("mean average precision", True, True, "area under precision over recall, mean over labels"),
    "exact_match": Word("exact match", True, True, "share of samples on which every label is right"),
    "mse": Word("mean squared error", False, False, "in the target’s unit squared"),
    "rmse": Word("root mean squared error", False, False, "in the target’s unit"),
    "mae": Word("mean absolute error", False, False, "in the target’s unit"),
    "r2": Word("R²", False, True, "share of the target’s variance that is explained"),
    "pearson": Word("Pearson correlation", False, True, "linear correlation with the target"),
    "spearman": Word("Spearman correlation", False, True, "correlation of ranks with the target"),
    "miou": Word("mean IoU", True, True, "intersection over union per class, mean over classes"),
    "bits_per_byte": Word("bits per byte", False, False, "surprise at each byte of the text, whatever the tokens are"),
    "perplexity": Word("perplexity", False, False, "how many equally likely tokens it hesitates between"),
    "token_accuracy": Word("token accuracy", True, True, "share of tokens that are the most probable one"),
    "written_tokens": Word("tokens written", False, True, "mean length of its continuations of 64 held-out prompts"),
    "distinct_2": Word("distinct pairs", True, True, "different pairs of tokens among all it wrote"),
    "distinct_3": Word("distinct triples", True, True, "different runs of three tokens among all it wrote"),
    "judged_nll": Word("surprise of the teacher", False, False, "at what it wrote, in nats per token"),
    "acceptance": Word(
        "acceptance", True, True, "how probably the teacher keeps a token that it proposes, over held-out text"
    ),
    "greedy_acceptance": Word(
        "greedy acceptance", True, True, "how often its most probable token is the teacher’s, over held-out text"
    ),
    "accepted": Word(
        "proposals accepted", True, True, "share that the teacher kept while both wrote, at temperature 1"
    ),
    "block_efficiency": Word(
        "tokens per call", False, True, "tokens that one call of the teacher wrote, with 4 proposals"
    ),
    "speedup": Word("speed-up", False, True, "of the teacher’s writing with it as a draft, at temperature 1"),
    "greedy_accepted": Word("proposals accepted, greedy", True, True, "share that the teacher kept while both wrote"),
    "greedy_block_efficiency": Word(
        "tokens per call, greedy", False, True, "with 4 proposals to each call of the teacher"
    ),
    "greedy_speedup": Word("speed-up, greedy", False, True, "of the teacher’s greedy writing with it as a draft"),
    "mmd": Word("MMD", False, False, "kernel distance between samples and data, 0 where they are alike"),
    "sliced_wasserstein": Word("sliced Wasserstein", False, False, "distance along random lines, in the data's unit"),
    "frechet": Word("Fréchet distance", False, False, "between Gaussians fitted to features of samples and data"),
    "kernel_distance": Word("kernel distance", False, False, "between features of samples and data (KID)"),
    "precision": Word("precision of samples", True, True, "samples that lie among the data"),
    "recall": Word("recall of samples", True, True, "data that lie among the samples"),
    "density": Word("density of samples", False, True, "how many neighbourhoods of the data hold a sample"),
    "coverage": Word("coverage", True, True, "data with a sample in their neighbourhood"),
    "diversity": Word("diversity", False, True, "mean distance between samples of one condition"),
    "conditional_accuracy": Word(
        "conditional accuracy", True, True, "samples that a classifier takes for what was asked"
    ),
    "evaluations": Word("evaluations", False, False, "calls of the network for one sample (NFE)", is_count=True),
    "pixel_accuracy": Word("pixel accuracy", True, True, "share of pixels whose class is right"),
}


def word(figure: str, higher_is_better: bool = True) -> Word:
    """The words for a figure; one that is not known goes by its own name."""
    return FIGURES.get(figure) or Word(figure.replace("_", " "), False, higher_is_better, "")


def unit(name: str) -> Callable[[Any], str]:
    """How values in a unit that a finding names are written: a share in per cent, others as they are."""
    if name == "share":
        return numbers.share

    def write(value: Any) -> str:
        tail = f"{numbers.THIN}{name}" if name and numbers.real(value) is not None else ""
        return numbers.plain(value, zeros=True) + tail

    return write
