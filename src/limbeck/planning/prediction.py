"""From a rehearsal to the whole run: bytes, seconds, disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from limbeck.engine.checkpoint import KEPT
from limbeck.planning.devices import RESERVE, Device
from limbeck.planning.rehearsal import Rehearsal
from limbeck.planning.seen import Piece, Seen
from limbeck.planning.shortening import ROWS, ShortRecipe

SECTIONS = {
    "teacher": "teacher, forward",
    "student": "student, forward",
    "method": "method: losses, bridges, its own networks",
    "backward": "backward, clip and division",
    "optimizer": "optimiser",
    "data": "waiting for data",
    "other": "the rest",
}


def sums(seen: Seen, *, devices: int = 1, pieces: int | None = None, shard: bool = False) -> dict[str, float]:
    """Bytes by kind at the peak of a stage on one device; `total` is what is alive together.

    What autograd keeps, and what lives for a moment only, grows with the rows of a piece; weights, gradients and
    the optimiser's state do not. With FSDP the student's are spread over the devices.

    Args:
        devices: how many share a batch.
        pieces: into how many pieces the share of a device is cut; None: as the run would.
        shard: `train.shard: fsdp`.
    """
    found = dict.fromkeys(
        ("student", "teacher", "method", "gradients", "optimizer", "ema", "batch", "activations", "temporary"), 0.0
    )
    found |= seen.memory
    spread = devices if shard else 1
    for name in ("student", "gradients", "optimizer"):
        found[name] /= spread
    weights = sum(found[name] for name in ("student", "teacher", "method", "gradients", "optimizer", "ema"))
    total = weights
    for piece in seen.updates.values():
        share = _share(seen, piece, devices, pieces)
        held = share < piece.batch_rows / devices / piece.rows  # the gradients of the pieces before
        kept, passing, made = _made(piece, share, spread, held)
        batch = piece.batch / devices
        found["batch"] = max(found["batch"], batch)
        found["activations"] = max(found["activations"], kept)
        found["temporary"] = max(found["temporary"], passing)
        total = max(total, weights + batch + made - piece.gradients / spread)
    return found | {"total": total}


def _share(seen: Seen, piece: Piece, devices: int, pieces: int | None) -> float:
    """Rows of the largest piece on one device, as a part of those that were measured."""
    if piece.whole:
        return 1.0
    return math.ceil(piece.batch_rows / devices / (pieces or seen.pieces)) / piece.rows


def _made(piece: Piece, share: float, spread: int, held: bool) -> tuple[float, float, float]:
    """What autograd keeps of `share` of the measured rows, what passes besides, and all that an update makes at its peak.

    The peak is after the forward pass, or in the backward pass when gradients are there too: what was alive beyond the
    kept counts as gradients first. In a later piece the gradients of those before are all there.
    """
    half = piece.kept_half / piece.kept if piece.kept_half is not None and piece.kept else 1.0
    beyond = max(piece.alive - piece.kept, 0)
    kept, passing = piece.kept * share * half, max(beyond - piece.gradients, 0) * share * half
    gradients = piece.gradients if held else min(beyond, piece.gradients)
    return kept, passing, kept + passing + gradients / spread


def least_pieces(seen: Seen, room: float, *, devices: int = 1, shard: bool = False, beside: float = 0.0) -> int | None:
    """The least power of two of pieces with which the stage fits into `room` bytes; None where none does."""
    most = max((math.ceil(p.batch_rows / devices) for p in seen.updates.values() if not p.whole), default=1)
    pieces = 1
    while pieces <= most:
        if sums(seen, devices=devices, pieces=pieces, shard=shard)["total"] + beside <= room:
            return pieces
        pieces *= 2
    return None


def memory(rehearsal: Rehearsal, device: Device, *, peak: int, base: int, copies: int, shard: bool) -> dict[str, Any]:
    """The peak in bytes on a device, of what it is made, and in how many pieces the batch goes there."""
    stages = [seen for seen in rehearsal.seen if seen.updates]
    if device.here:
        largest = max(stages, key=lambda seen: sums(seen)["total"], default=None)
        parts = sums(largest) if largest is not None else {}
        parts.pop("total", None)
        more = sum((1 - 1 / s.forced) * (sums(s)["activations"] + sums(s)["temporary"]) for s in stages if s.forced > 1)
        total = peak - copies + more + _gathered(rehearsal)
        if device.cuda:
            return {"total": total, **parts, "base": base, "data": 0, "pieces": _pieces(stages)}
        data = rehearsal.recipe.data_bytes if isinstance(rehearsal.recipe, ShortRecipe) else 0
        parts |= {"base": base, "data": data, "other": total - base - data - sum(parts.values())}
        return {"total": total, **parts, "pieces": _pieces(stages)}
    most, pieces = dict.fromkeys(("total",), 0.0), 1
    for seen in stages:
        own = seen.pieces
        if seen.micro_batch == "auto":  # a CUDA device finds its pieces by itself
            room = device.bytes - RESERVE
            own = least_pieces(seen, room, devices=device.count, shard=shard) or 1
        else:
            own = max(1, math.ceil(seen.batch_size / device.count / int(seen.micro_batch)))
        found = sums(seen, devices=device.count, pieces=own, shard=shard)
        if found["total"] > most["total"]:
            most, pieces = found, own
    total = most.pop("total") + RESERVE
    return {"total": total, **most, "base": RESERVE, "pieces": pieces}


def _pieces(stages: list[Seen]) -> int:
    return max((seen.pieces for seen in stages), default=1)


def _gathered(rehearsal: Rehearsal) -> float:
    """Logits of rows that the rehearsal did not measure: of student, teacher and control, and two copies under way."""
    return 5 * 4.0 * rehearsal.logits * max(_left_out(rehearsal).values(), default=0)


def _left_out(rehearsal: Rehearsal) -> dict[str, int]:
    full = getattr(rehearsal.recipe, "full", {})
    return {name: max(count - ROWS, 0) for name, count in full.items() if name != "train"}


def per_row(seen: Seen) -> float:
    """Seconds of a step per row: the mean of the timed steps without the slowest and fastest twentieth of them."""
    rates = sorted(seconds / rows for seconds, rows in (seen.timed or [seen.last]))
    edge = len(rates) // 20
    kept = rates[edge : len(rates) - edge]
    return sum(kept) / len(kept)


def rows_of(seen: Seen, steps: int) -> int:
    """Rows of the first `steps` steps; the last step of an epoch may be smaller."""
    epochs, rest = divmod(steps, seen.per_epoch)
    return epochs * seen.train_rows + min(rest * seen.batch_size, seen.train_rows)


def validations(seen: Seen, steps: int) -> int:
    """How often is validated in so many steps: after every `validate_every` epochs, and at the end."""
    if not seen.validation_rows[0] or not steps:
        return 0
    whole, rest = divmod(steps, seen.per_epoch)
    return whole // seen.validate_every + bool(rest or whole % seen.validate_every)


def stage_seconds(seen: Seen) -> dict[str, float]:
    """Seconds of a whole stage: its steps, its validations, checkpoints in between, and what a rehearsal has of them."""
    step = per_row(seen)
    short, full = seen.validation_rows
    once = sum(seen.validations) / len(seen.validations) * full / short if seen.validations else 0.0
    training, validating = rows_of(seen, seen.steps) * step, validations(seen, seen.steps) * once
    save = min(seen.saves, default=0.0)
    saves = seen.steps if seen.save_every == 0 else int((training + validating) / seen.save_every)
    left = (
        (rows_of(seen, seen.steps) - rows_of(seen, seen.done)) * step
        + validating
        - seen.validation_s
        + max(saves - seen.saved_between, 0) * save
        - seen.extra_s
        + (step * seen.batch_size if seen.updates else 0.0)  # one step was made while measuring
    )
    return {"training": training, "validating": validating, "saving": saves * save, "left_out": left}


def seconds(rehearsal: Rehearsal, wall: float) -> dict[str, Any]:
    """Seconds to the end of the run, and where they go."""
    found = {"training": 0.0, "validating": 0.0, "saving": 0.0, "control": 0.0}
    left = 0.0
    for seen in rehearsal.seen:
        own = stage_seconds(seen)
        whole = own["training"] + own["validating"] + own["saving"]
        if seen.control and rehearsal.found_control is not None:
            left -= whole - own["left_out"]  # what the rehearsal spent on it
            continue
        left += own["left_out"]
        if seen.control:
            found["control"] += whole
        else:
            for name in ("training", "validating", "saving"):
                found[name] += own[name]
    extra = _left_out(rehearsal)
    full = getattr(rehearsal.recipe, "full", {})
    measured = next((name for name in ("test", "validation") if name in full), "train")
    left += (
        sum(rehearsal.asked.values()) * extra.get(measured, 0) / max(full.get(measured, 1) - extra.get(measured, 0), 1)
    )
    if extra.get("validation"):
        left += rehearsal.findings_s * extra["validation"] / (full["validation"] - extra["validation"])
    total = wall + left
    return {"total": total, **found, "around": total - sum(found.values())}


def shares(rehearsal: Rehearsal) -> tuple[dict[str, float], dict[str, float]]:
    """Of the time in steps of the run (not of its control), the share of each section, and of each term of the loss."""
    sections: dict[str, float] = {}
    terms: dict[str, float] = {}
    for seen in rehearsal.seen:
        whole = sum(seen.sections.values())
        if seen.control or not whole:
            continue
        weight = rows_of(seen, seen.steps) * per_row(seen) / whole
        for name, spent in seen.sections.items():
            kind = "method" if name.startswith("term ") else name
            sections[kind] = sections.get(kind, 0.0) + weight * spent
            if name.startswith("term "):
                terms[name[5:]] = terms.get(name[5:], 0.0) + weight * spent
    total = sum(sections.values()) or 1.0
    ordered = {name: sections.get(name, 0.0) / total for name in SECTIONS}
    return ordered, {name: spent / total for name, spent in sorted(terms.items(), key=lambda item: -item[1])}


def disk(rehearsal: Rehearsal, folder: Path) -> dict[str, float]:
    """Bytes of the run folder at its largest: kept checkpoints and one being written, students, logs, figures."""
    sizes: dict[str, float] = {"checkpoints": 0.0, "students": 0.0, "log": 0.0, "figures": 0.0}
    for file in folder.rglob("*"):
        name = file.relative_to(folder).parts
        if not file.is_file() or "checkpoints" in name:
            continue
        kind = "students" if "student" in name else "log" if name[-1] == "log.jsonl" else "figures"
        sizes[kind] += file.stat().st_size
    done = sum(seen.done for seen in rehearsal.seen)
    sizes["log"] *= sum(seen.steps for seen in rehearsal.seen) / max(done, 1)
    each = rehearsal.checkpoints
    sizes["checkpoints"] = KEPT * sum(each.values()) + max(each.values(), default=0)
    sizes["figures"] += 4.0 * 3 * rehearsal.logits * max(_left_out(rehearsal).values(), default=0)
    return {"total": sum(sizes.values()), **sizes}
