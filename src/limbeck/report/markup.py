"""HTML by hand: escaping, sections, figures with captions, tables that can be sorted."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.report.folder import RunFolder

# control characters, and those that turn the direction of the text after them
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def esc(value: object, longest: int | None = None) -> str:
    """A value as text that no reader can take for markup: escaped, without unseen characters, cut if too long."""
    text = _UNSEEN.sub("\ufffd", str(value))
    if longest is not None and len(text) > longest:
        text = text[: longest - 1].rstrip() + "…"
    return html.escape(text, quote=True)


def name(value: object, longest: int = 80) -> str:
    """A name someone gave, kept apart from the direction of the text around it; the whole of it on hover if cut."""
    whole = esc(value, 2000)
    return f"<bdi>{whole}</bdi>" if len(str(value)) <= longest else f'<bdi title="{whole}">{esc(value, longest)}</bdi>'


def role(who: str) -> str:
    """A role by its name, in its colour and with its mark: the legend of the whole page, wherever it is read."""
    shape = {
        "teacher": '<rect x="1.2" y="1.2" width="7.6" height="7.6"/>',
        "control": '<path d="M5 0l5 5-5 5-5-5Z"/>',
    }.get(who, '<circle cx="5" cy="5" r="4.4"/>')
    return f'<span class="role {esc(who)}"><svg viewBox="0 0 10 10" aria-hidden="true">{shape}</svg>{esc(who)}</span>'


def section(key: str, title: str, *content: str) -> str:
    """A section with a heading; empty contents are left out, and without any there is no section."""
    body = "\n".join(part for part in content if part)
    return f'<section id="{esc(key)}">\n<h2>{esc(title)}</h2>\n{body}\n</section>' if body else ""


def contents(sections: Sequence[str]) -> str:
    """Links to the sections that are there, by their headings."""
    found = re.findall(r'<section id="([\w-]+)">\n<h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in found)
    return f'<nav aria-label="contents"><ol>{links}</ol></nav>'


def prose(*sentences: str) -> str:
    """A paragraph of sentences that are already escaped."""
    text = " ".join(sentence for sentence in sentences if sentence)
    return f"<p>{text}</p>" if text else ""


def missing(sentence: str) -> str:
    """A short sentence in place of what is not there."""
    return f'<p class="missing">{esc(sentence)}</p>'


def figure(content: str, caption: str, *, kind: str = "figure", wide: bool = False) -> str:
    """A numbered figure or table with its caption, in the margin unless it is wide."""
    return (
        f'<figure class="{kind}{" wide" if wide else ""}">\n<div class="plate">{content}</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def per_run(runs: Sequence[RunFolder], show: Callable[[RunFolder], str]) -> str:
    """What ``show`` says about each run: alone as it is, among several to be unfolded under the run's name."""
    if len(runs) == 1:
        return show(runs[0])
    return "".join(
        f'<details class="run"{" open" if i == 0 else ""}><summary><span>{i + 1}</span> {name(run.name, 60)}</summary>{show(run)}</details>'
        for i, run in enumerate(runs)
    )


def panels(*charts: str, least: float = 18) -> str:
    """Charts side by side, below each other where there is no room; ``least`` is the width in rem that one needs."""
    inner = "".join(f'<div class="panel">{chart}</div>' for chart in charts if chart)
    return f'<div class="panels" style="--least:{least}rem">{inner}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names with the class that draws them: a short stroke of the line each stands for."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><path class="line {style}" d="M1 4H25"/></svg>'
        f"{esc(text, 60)}</li>"
        for text, style in entries
    )
    return f'<ul class="legend">{items}</ul>' if entries else ""


def swatches(entries: Sequence[tuple[str, str]]) -> str:
    """Names, already markup, with the class that fills the area each stands for."""
    items = "".join(f'<li><span class="swatch {style}"></span>{text}</li>' for text, style in entries)
    return f'<ul class="legend">{items}</ul>' if entries else ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: markup, and what it is sorted by (None: it is not)."""

    markup: str
    key: Any = None
    numeric: bool = True
    style: str = ""


def words(value: object) -> Cell:
    """A cell of text."""
    return Cell(name(value, 48), str(value), numeric=False)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = True, style: str = "") -> str:
    """A table with the first column as the names of the rows; heads are markup, and buttons where a column sorts."""
    numeric = [all(row[i].numeric for row in rows) for i in range(len(head))]
    heads = []
    for title, right, i in zip(head, numeric, range(len(head))):
        sorts = sortable and len(rows) > 1 and all(row[i].key is not None for row in rows)
        inner = f'<button type="button">{title}</button>' if sorts else title
        style_of = rows[0][i].style if rows and rows[0][i].style == "meaning" else ""
        heads.append(f'<th scope="col"{_classes("n" if right else "", style_of)}>{inner}</th>')
    body = "".join(f"<tr>{''.join(_cell(cell, first=i == 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table{_classes(style)}><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, *, first: bool) -> str:
    tag = 'th scope="row"' if first else "td"
    key = "" if cell.key is None else f' data-key="{esc(cell.key, 200)}"'
    return f"<{tag}{_classes('n' if cell.numeric else '', cell.style)}{key}>{cell.markup}</{tag.split()[0]}>"


def _classes(*names: str) -> str:
    kept = " ".join(part for part in names if part)
    return f' class="{kept}"' if kept else ""
