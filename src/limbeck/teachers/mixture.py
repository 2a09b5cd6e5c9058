"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from limbeck.actors import Replace, Teacher
from limbeck.data.collate import pick
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.diffusion.styles import STYLE
from limbeck.errors import RecipeError, nearest
from limbeck.signals import Place, Projection, Signals, weighted_sum
from limbeck.sketches import Sketch

if TYPE_CHECKING:
    from limbeck.data.tensors import Data
    from limbeck.language.tokens import Tokens

RULES = ("mean", "confidence")

Logits = Float[Tensor, "batch ... classes"] | Projection


class Mixture(Teacher):
    """Named teachers whose logits are mixed; each keeps its own view, and its signals are heard as `name.signal`.

    Args:
        members: teachers by name, at least one.
        by: `mean` of the logits; `confidence`: per sample, weights softmax(-entropy) of each member's prediction;
            or a batch column that holds, per sample, the position of the one teacher to believe.

    One member alone gives its own logits, bit for bit. Members that know different classes have no mixed `logits`: a
    method reads `name.logits` of each, or it is refused when it asks.

    Denoising networks are not mixed: a method asks each of them (`members`), and a row's sample, for figures, is made by one of
    them, see `chosen`.
    """

    def __init__(self, members: Mapping[str, Teacher], *, by: str = "mean"):
        if not members:
            raise RecipeError("a mixture needs at least one teacher: teacher.members={name: {model: ...}}")
        self._members = dict(members)
        self.by = by
        first = next(iter(self._members.values()))
        self.model, self.source = first.model, first.source
        self.view, self.labels, self.label_map = None, first.labels, first.label_map
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, Place] = {}
        self.paths: dict[str, str] = {}
        self._learning, self._mode = False, "frozen"
        differing = [name for name, m in self._members.items() if m.labels != first.labels]
        self._apart = ""
        if differing:
            self._apart = (
                f"the teachers {next(iter(self._members))} and {differing[0]} name different labels, so their logits cannot be mixed by position. "
                "Give them one label set, or distil from them in turn (stages)."
            )

    def __repr__(self) -> str:
        return f"Mixture({', '.join(self._members)}, by={self.by!r})"

    @property
    def members(self) -> dict[str, Teacher]:
        """The single teachers."""
        return self._members

    @property
    def learning(self) -> bool:
        """Whether every member learns in the current update; each carries its own flag."""
        return all(m.learning for m in self._members.values())

    @learning.setter
    def learning(self, value: bool) -> None:
        for member in getattr(self, "_members", {}).values():
            member.learning = value

    @property
    def mode(self) -> Any:
        """`frozen` or `through`, the same for all members."""
        return next(iter(self._members.values())).mode

    @mode.setter
    def mode(self, value: Any) -> None:
        for member in getattr(self, "_members", {}).values():
            member.mode = value

    def tap(self, name: str, path: str) -> Mixture:
        """Taps belong to members: name them `member.tap`."""
        owner, _, own = name.partition(".")
        if owner not in self._members or not own:
            raise RecipeError(
                f"a mixture listens in its members: write member.name, not '{name}'. {nearest(owner, self._members)}"
            )
        self._members[owner].tap(own, path)
        return self

    def __call__(
        self,
        batch: Mapping[str, Any],
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """The mixed `logits`, and every member's signals as `member.signal`."""
        if until is not None:
            raise RecipeError("a mixture has no single place to stop at; ask one of its members.")
        if self.generates and (reads is None or "generated" in reads):
            return Signals({"generated": self._generated(batch)})
        heard: dict[str, Signals] = {}
        for name, member in self._members.items():
            wanted = None
            if reads is not None:
                wanted = {r.removeprefix(f"{name}.") for r in reads if r.startswith(f"{name}.")}
                wanted |= {"logits"} if "logits" in reads else set()
                if not wanted:
                    continue
            own = {k.removeprefix(f"{name}."): f for k, f in (replace or {}).items() if k.startswith(f"{name}.")}
            heard[name] = member(batch, replace=own or None, reads=wanted)
        signals = Signals({f"{name}.{k}": v for name, found in heard.items() for k, v in found.items()})
        if self._apart and "logits" in (reads or ()):
            raise RecipeError(self._apart)
        if not self._apart and (reads is None or "logits" in reads):
            signals["logits"] = self._mix([found["logits"] for found in heard.values()], batch)
        return signals

    @property
    def generates(self) -> bool:
        """Whether all members are denoising networks."""
        return all(isinstance(member.model, DiffusionNetwork) for member in self._members.values())

    def chosen(self, batch: Mapping[str, Any]) -> Int64[Tensor, "batch"]:
        """By position, the member that makes a row's sample: that of the column `by`, else of `style`; without either row i has member i modulo their count.

        Raises:
            RecipeError: the column names a member that is not there.
        """
        column = self._styled(batch)
        found = batch["id"] % len(self._members) if column is None else batch[column].long()
        if column is not None and not 0 <= int(found.min()) <= int(found.max()) < len(self._members):
            raise RecipeError(
                f"the column '{column}' says which teacher a row is of, from {int(found.min())} to {int(found.max())}, and there are "
                f"{len(self._members)}: {', '.join(self._members)} (0 to {len(self._members) - 1})."
            )
        return found

    def describe_samples(self, batch: Mapping[str, Any]) -> str:
        """Who made the samples that are measured, in a sentence."""
        column, names = self._styled(batch), ", ".join(self._members)
        how = (
            f"number (row modulo {len(self._members)})" if column is None else f"that which the column '{column}' names"
        )
        return f"each row's sample is of one of {names}: {how}"

    def shown(self, batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Members are shown what their own views say; there is no view of all.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            f"the teacher is a mixture ({', '.join(self._members)}), which is shown nothing as a whole: this method asks one network. Give one "
            "teacher, or take a method that asks each of them (of denoising networks: method=dmm)."
        )

    def look_at(self, columns: Any) -> Any:
        """Settle every member's view."""
        names = list(columns)
        for member in self._members.values():
            member.look_at(names)

    def probe(self, batch: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """Every member's shapes as `member.signal`, and those of the mixed logits."""
        for name, member in self._members.items():
            shapes = member.probe(batch)
            self.shapes |= {f"{name}.{k}": shape for k, shape in shapes.items()}
            if "logits" in shapes:
                known = self.shapes.setdefault("logits", shapes["logits"])
                if known != shapes["logits"]:
                    self._apart = self._apart or (
                        f"teacher {name} has logits of shape {list(shapes['logits'])}, those before it {list(known)}: they cannot be mixed."
                    )
        if self._apart:
            self.shapes.pop("logits", None)
        return self.shapes

    @property
    def stored(self) -> bool:  # type: ignore[override]
        """Whether any member's answers come from a store."""
        return any(member.stored for member in self._members.values())

    def check_data(self, data: Data) -> None:
        """Refuse data that a member cannot be asked about."""
        for member in self._members.values():
            member.check_data(data)

    def answers(self, split: str) -> bool:
        """Whether every member can be asked about this split."""
        return all(member.answers(split) for member in self._members.values())

    def view_seeds(self, ids: Int64[Tensor, "batch"], seed: int, epoch: int) -> Int64[Tensor, "batch"]:
        """Those of the members whose views are stored; all others follow them."""
        usual = super().view_seeds(ids, seed, epoch)
        own = [member.view_seeds(ids, seed, epoch) for member in self._members.values()]
        bound = [seeds for seeds in own if not torch.equal(seeds, usual)]
        if any(not torch.equal(seeds, bound[0]) for seeds in bound):
            raise RecipeError(
                "the teachers' answers were stored in different random views, so no view of a sample is known to all of them. "
                "Cache them with one seed and one number of views (seed, cache.views)."
            )
        return bound[0] if bound else usual

    def bytes_count(self) -> int:
        """Bytes of all members (a network that two of them share counts once)."""
        return sum(member.bytes_count() for member in {id(m.model): m for m in self._members.values()}.values())

    def lacks(self, name: str) -> str:
        """Why there is no such signal."""
        return self._apart if name == "logits" and self._apart else super().lacks(name)

    def parameters_count(self) -> int:
        """Parameters of all members (a network that two of them share counts once)."""
        return sum(member.parameters_count() for member in {id(m.model): m for m in self._members.values()}.values())

    @property
    def tokenizer(self) -> Tokens | None:
        """How all members write texts; None where one of them writes none."""
        first, *others = [member.tokenizer for member in self._members.values()]
        alike = first is not None and all(other is not None and first.same_as(other) for other in others)
        return first if alike else None

    def _styled(self, batch: Mapping[str, Any]) -> str | None:
        """The column that says whose a row is, if there is one."""
        if self.by not in RULES and self.by not in batch:
            raise self._no_column(batch)
        return next((name for name in (self.by, STYLE) if name not in RULES and name in batch), None)

    def _generated(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch ..."]:
        style = self.chosen(batch)
        rows = [torch.nonzero(style == k).flatten() for k in range(len(self._members))]
        made = [
            member(pick(dict(batch), own))["generated"] for member, own in zip(self._members.values(), rows) if len(own)
        ]
        if len({part.shape[1:] for part in made}) > 1:
            raise RecipeError(
                f"the teachers {', '.join(self._members)} make samples of different shapes: {', '.join(str(list(part.shape[1:])) for part in made)}."
            )
        return torch.cat(made)[torch.cat(rows).argsort()]

    def _no_column(self, batch: Mapping[str, Any]) -> RecipeError:
        return RecipeError(
            f"teacher.by '{self.by}' is neither a rule nor a column. {nearest(self.by, [*RULES, *map(str, batch)])}"
        )

    def _mix(self, given: list[Logits], batch: Mapping[str, Any]) -> Logits:
        if len(given) == 1:
            return given[0]
        if any(isinstance(logits, Sketch) for logits in given):
            raise RecipeError(
                "of one of the teachers only some classes of each token are known (stored, or from an endpoint), and such logits cannot be "
                "mixed with others. Give one teacher, or the models themselves."
            )
        if self.by == "mean" and all(isinstance(logits, Projection) for logits in given):
            return weighted_sum([(logits, 1 / len(given)) for logits in given if isinstance(logits, Projection)])
        stacked = torch.stack([z.materialise() if isinstance(z, Projection) else z for z in given])
        if self.by == "mean":
            return stacked.mean(0)
        if self.by == "confidence":
            logp = stacked.float().log_softmax(-1)
            entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
            return ((-entropy).softmax(0).unsqueeze(-1) * stacked).sum(0).to(stacked.dtype)
        if self.by not in batch:
            raise self._no_column(batch)
        chosen = batch[self.by].long()
        return stacked[chosen, torch.arange(len(chosen), device=chosen.device)]
