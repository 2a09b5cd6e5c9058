"""The parts of docs/evidence.md on drafts for speculative decoding and on students with a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comparison_tables import against, interval, spread, verdict

DRAFTS = """## Drafts for speculative decoding

A small model proposes tokens, its teacher keeps or refuses them, and what is written is the teacher's own. Every draft of a seed goes
on from the same student with the same texts, steps and learning rate; adaspec trains a reference for as many steps before. Acceptance is
exact: the mean over held-out tokens of the probability that a proposal is kept, sum_v min(p_v, q_v). Proposals accepted, tokens per call of
the target and the speed-up are measured while both write, through the assisted generation of transformers; the speed-up is by the clock of
a busy machine, so only its size is to be read. Intervals over three seeds are wide.
"""
BYTES = """## Across tokenizers

A student that reads bytes, taught by a teacher that reads subwords: there is no token that both know of beyond single bytes. Same start,
texts, steps and learning rate per seed; less is better.
"""


def drafts(found: Mapping[str, Any]) -> str:
    """A table at temperature 1 and one for greedy decoding, and sentences on the exact acceptance."""
    how = found["decoding"]
    text = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. {found['train']['steps']} steps of {found['train']['batch_size']} rows after "
        f"{found['start']['steps']} of the labels alone; {len(found['seeds'])} seeds. {how['gamma']} proposals to a call, {how['tokens']} tokens after "
        f"each of {how['prompts']} prompts.\n",
    ]
    targets = found["targets"]
    for words, prefix in (("at temperature 1", ""), ("greedy", "greedy ")):
        rows = {
            name: {arm["arm"]: arm for arm in targets[f"{prefix}{name}"]["arms"]}
            for name in ("acceptance", "accepted", "block efficiency", "speedup")
        }
        text += [
            f"| draft, {words} | acceptance | minus supervised (95 %) | minus forward-kl (95 %) | proposals accepted | tokens per call | speed-up |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, arm in rows["acceptance"].items():
            told = [interval(d) if (d := against(arm, base)) else "" for base in ("supervised", "forward-kl")]
            measured = " | ".join(spread(rows[key][name]) for key in ("accepted", "block efficiency", "speedup"))
            text.append(f"| {name} | {spread(arm)} | {told[0]} | {told[1]} | {measured} |")
        text += ["", *(said(targets[f"{prefix}acceptance"], base) for base in ("supervised", "forward-kl")), ""]
    cost = ", ".join(f"{arm} {seconds:.0f} s" for arm, seconds in found["seconds"].items())
    worth = ", ".join(f"{arm} {value:.3f}" for arm, value in found["bits_per_byte"].items())
    text += [f"Bits per byte of the drafts: {worth}. Training: {cost}.\n", f"Again: `{found['command']}`\n"]
    return "\n".join(text)


def across_tokenizers(found: Mapping[str, Any]) -> str:
    """One row per arm, the best mean first."""
    ((_, problem),) = found["targets"].items()
    text = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. The teacher has {found['teacher']:.3f} bits per byte (of all test texts), the "
        f"students begin with {found['start']['bits_per_byte']:.3f} after {found['start']['steps']} steps of the texts alone; then "
        f"{found['train']['steps']} steps, {len(found['seeds'])} seeds.\n",
        "| method | bits per byte | minus supervised (95 %) | seconds |",
        "|---|---|---|---|",
    ]
    for arm in problem["arms"]:
        told = interval(d) if (d := against(arm, "supervised")) else ""
        text.append(f"| {arm['arm']} | {spread(arm)} | {told} | {found['seconds'][arm['arm']]:.0f} |")
    return "\n".join([*text, "", said(problem, "supervised"), "", f"Again: `{found['command']}`\n"])


def said(problem: Mapping[str, Any], base: str) -> str:
    """Who is told apart from an arm, in a sentence; more or less is better, as the problem says."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for arm in problem["arms"]:
        if (difference := against(arm, base)) is not None:
            word = verdict(difference).rsplit(" ", 1)[0]
            if not problem["higher_is_better"]:
                word = {"better": "worse", "worse": "better"}.get(word, word)
            groups[word].append(arm["arm"])
    told = "; ".join(f"{word}: {', '.join(arms)}" for word, arms in groups.items() if arms)
    return f"Against {base}, {told}."
