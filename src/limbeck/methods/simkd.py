"""SimKD: the student answers through its teacher's classifier (Chen et al. 2022, arXiv 2203.14001)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from limbeck import labels, layers
from limbeck.bridges.as_map import as_map
from limbeck.bridges.maps import Resample
from limbeck.bridges.reused import TAILS, ReusedClassifier
from limbeck.errors import RecipeError
from limbeck.losses import mse
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals
from limbeck.sources import operate


class SimKD(layers.LayerTransfer):
    """weight * mean squared difference of P(f_s) and f_t, with f the last features before pooling, and nothing else.

    The student's classifier is replaced by the projector P, the teacher's pooling and the teacher's own linear
    classifier, which is frozen: the student's logits are teacher_classifier(pool(P(f_s))), and P and the classifier ship
    with it. Where P(f_s) = f_t the student answers as its teacher does. Neither labels nor logits are used (`task_weight`
    is 0). The larger of the two maps is pooled to the smaller.

    What stands between the teacher's map and its classifier is found by trying (mean, maximum or flattening, after a
    ReLU or not) on training rows; where nothing fits, and for transformers, f_t is what the classifier is given.
    """

    card = Card(
        "simkd",
        summary="The student learns the teacher's last features and answers through the teacher's own classifier.",
        paper="Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, arXiv 2203.14001",
        needs=("the last map or embedding",),
        use_when="the teacher's classes are the student's, and some more parameters at inference are welcome",
        cost="a forward pass of the teacher per sample; a projector and the teacher's classifier more in the student that ships",
    )
    proposes = "map"

    task_weight: Scalar = 0.0
    reduction: Annotated[int, Field(ge=1)] = 2
    classifier: str | None = None

    def prepare(self) -> None:
        layers.its_own_network(self.teacher, "simkd builds the classifier of the teacher's network into the student")
        super().prepare()
        if len(self.pairs) != 1:
            raise RecipeError(f"simkd compares one pair of layers; method.layers names {len(self.pairs)}.")
        layers.embedding(self.teacher, self._few())

    def setup(self) -> None:
        super().setup()
        source = self._teachers_classifier()
        self.reads, tail, self.rectify, positive = self._way()
        self.lay, (channels, *size) = as_map(self.teacher.shapes[self.reads])
        if self._head() is None:
            self._operate(source, {"channels": channels, "tail": tail, "positive": positive}, size)
        head = self._head()
        assert head is not None
        if head.classifier.weight.shape != source.weight.shape or head.tail != tail:
            raise RecipeError(
                "this student already answers through the classifier of another teacher. Give the student as it was before that."
            )
        head.classifier.load_state_dict(source.state_dict())
        self.resample = Resample(head.projector.resample.size)
        self.student.probe(self._few())

    def teacher_reads(self) -> set[str]:
        return {self.reads}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        head = self._head()
        assert head is not None
        theirs = self.lay(teacher[self.reads])
        theirs = self.resample(theirs.relu() if self.rectify else theirs)
        return Loss.mean("features", mse(head.projected.take(), theirs, dim=1))

    def _way(self) -> tuple[str, str, bool, bool]:
        """Which of the teacher's signals P learns, how it goes on to the classifier, whether a ReLU comes before that,
        and whether it is then never negative."""
        place, signals = self.pairs[0][1], self.teacher(self._few())
        given, found = signals[layers.EMBEDDING], signals[place]
        for rectify in (False, True) if found.dim() == 4 else ():
            value = found.relu() if rectify else found
            for tail, way in TAILS.items():
                pooled = way(value)
                if pooled.shape == given.shape and torch.allclose(pooled, given, rtol=1e-4, atol=1e-5):
                    return place, tail, rectify, bool((value >= 0).all())
        if found.dim() == 4:
            self.notices.append(
                f"simkd: what stands between the teacher's {place} and its classifier is none of {', '.join(TAILS)}; the student learns what the classifier is given."
            )
        return layers.EMBEDDING, "flatten", False, bool((given >= 0).all())

    def _teachers_classifier(self) -> nn.Linear:
        """The teacher's linear classifier, or a copy with its classes in the student's order."""
        batch = self._few()
        path, signals = layers.classifier_path(self.teacher, batch), self.teacher(batch)
        source = self.teacher.model.get_submodule(path)
        given, logits = signals[layers.EMBEDDING], signals["logits"]
        if not isinstance(source, nn.Linear) or given.dim() != 2:
            raise RecipeError(
                f"the teacher's classifier {path} is a {type(source).__name__} of {list(given.shape[1:])}; simkd reuses a linear layer of one vector per sample."
            )
        with torch.no_grad():
            if not torch.allclose(source(given), logits, rtol=1e-3, atol=1e-4):
                raise RecipeError(
                    f"the teacher's logits are not what its last linear layer {path} gives, so a student with that layer would not answer as it does. simkd needs a teacher that ends in it."
                )
        order = self._order(logits.shape[-1])
        if order is None:
            return source
        copy = nn.Linear(source.in_features, len(order), bias=source.bias is not None).to(source.weight)
        copy.load_state_dict({name: tensor[order] for name, tensor in source.state_dict().items()})
        return copy

    def _order(self, classes: int) -> list[int] | None:
        """The teacher's classes in the student's order; None where it is the same."""
        ours, theirs = self.student.labels, self.teacher.labels
        if ours and theirs:
            found = labels.match(ours, theirs, self.teacher.label_map)
            if found is None:
                return None
            if len(found.student) == len(ours) and all(len(group) == 1 for group in found.groups):
                return [group[0] for group in found.groups]
            raise RecipeError(
                f"simkd reuses the teacher's classifier, so every class of the student is one of the teacher's. Student: {', '.join(ours)}. Teacher: {', '.join(theirs)}."
            )
        if self.student.shapes["logits"] != (classes,):
            raise RecipeError(
                f"simkd reuses the teacher's classifier of {classes} classes; the student's logits have the shape {list(self.student.shapes['logits'])}. "
                "Give both their labels, by which classes are found: teacher.labels, student.labels"
            )
        return None

    def _operate(self, source: nn.Linear, theirs: dict[str, Any], size: list[int]) -> None:
        """Put the new head into the student, and note in its source how to do so again."""
        name, student = self.pairs[0][0], self.student
        classifier = self.classifier or layers.classifier_path(student, self._few())
        if name not in student.paths:
            raise RecipeError(f"simkd reads the student's '{name}' inside the student; name the path of a module.")
        _, (_, *ours) = as_map(student.shapes[name])
        common = size if theirs["tail"] == "flatten" else [min(a, b) for a, b in zip(ours, size)]
        before = student.parameters_count()
        structure = theirs | {
            "classifier": classifier,
            "features": None if student.paths[name] == f"{classifier}:input" else student.paths[name],
            "shape": list(student.shapes[name]),
            "size": common,
            "inputs": source.in_features,
            "classes": source.out_features,
            "bias": source.bias is not None,
            "reduction": self.reduction,
        }
        operate(student.source, "limbeck.bridges.reused:reuse", structure)
        student.listen_again()
        self.notices.append(
            f"simkd: {classifier} of the student is replaced by a projector and the teacher's classifier, which ship with it "
            f"({student.parameters_count() - before:+,} parameters)."
        )

    def _head(self) -> ReusedClassifier | None:
        return next((m for m in self.student.model.modules() if isinstance(m, ReusedClassifier)), None)

    def _few(self) -> Batch:
        split = self.data.splits["train"]
        return layers.on_device(self.student, split.__getitems__(list(range(min(4, len(split))))))
