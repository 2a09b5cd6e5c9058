"""Everything that is wrong with the data, found before anything starts and told at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from limbeck.data.collate import listed
from limbeck.data.column import CellError, Column
from limbeck.data.columns import Label, Text
from limbeck.data.scan import Problem, Scan
from limbeck.errors import RecipeError

SHOWN = 20


def row_problems(found: Scan, columns: Mapping[str, Column]) -> list[Problem]:
    """Unreadable cells, double ids, labels that name no class, and rows of another shape than most; by row.

    `columns` have fitted labels. Shapes of which none belongs to half of the rows are a problem of the whole data.
    """
    problems = found.problems + _double_ids(found)
    for name, column in columns.items():
        if isinstance(column, Label):
            problems += _labels(found, name, column)
        elif not isinstance(column, Text):
            problems += _shapes(found, name, column)
    return sorted(problems, key=lambda problem: -1 if problem.row is None else problem.row)


def _double_ids(found: Scan) -> list[Problem]:
    first: dict[str, int] = {}
    problems = []
    for row, id in enumerate(found.ids):
        if first.setdefault(id, row) != row:
            problems.append(
                Problem(row, f"row {id}: this id belongs to row number {first[id]} already (this is {row})")
            )
    return problems


def _labels(found: Scan, name: str, column: Label) -> list[Problem]:
    faults = {}
    for key in set(found.values[name]):
        try:
            column.index(key)
        except CellError as error:
            faults[key] = str(error)
    return [
        Problem(row, f"row {found.ids[row]}: {name} {faults[key]}")
        for row, (key, form) in enumerate(zip(found.values[name], found.forms[name], strict=True))
        if form and key in faults
    ]


def _shapes(found: Scan, name: str, column: Column) -> list[Problem]:
    counts = Counter(filter(None, found.forms[name]))
    if len(counts) < 2:
        return []
    total = counts.total()
    usual, count = counts.most_common(1)[0]
    advice = f"; {column.evens} in its column makes all alike" if column.evens else ""
    if 2 * count < total:
        some = [f"{one} ({rows} rows)" for one, rows in counts.most_common(3)]
        return [
            Problem(None, f"{name} has {len(counts)} different shapes in {total} rows: {listed(some, 3)}, ...{advice}")
        ]
    return [
        Problem(row, f"row {found.ids[row]}: {name} is {form}, but {count} of {total} rows have {usual}{advice}")
        for row, form in enumerate(found.forms[name])
        if form and form != usual
    ]


def split_problems(
    splits: Mapping[str, Sequence[int]],
    classes: Mapping[str, Sequence[int]],
    names: Mapping[str, Sequence[str]],
    *,
    made: Collection[str] = (),
    given: Collection[str] = (),
) -> tuple[list[Problem], list[str]]:
    """Empty splits, and classes without a row in some split: as problems, and as notices.

    A class that some split lacks is a problem in the target column (`label`, or the only label column), but a notice
    in other label columns (say, a speaker held out on purpose) and in a validation or test split that was made here by
    a hash. A class without any row is a problem, unless the user's own list of names holds it.

    Args:
        splits: positions of the rows of each split; `classes`: class number at every position, by label column;
            -1 where there is none.
        names: the classes of each label column.
        made: splits that the data do not name; `given`: label columns whose names the user wrote down.
    """
    filled = ", ".join(f"{len(rows)} in '{name}'" for name, rows in splits.items() if rows) or "nowhere"
    problems = [
        Problem(None, f"the split '{name}' has no row; rows are {filled}") for name, rows in splits.items() if not rows
    ]
    notices = []
    for column, numbers in classes.items():
        target = column == "label" or len(classes) == 1
        present = {split: {numbers[row] for row in rows} - {-1} for split, rows in splits.items() if rows}
        anywhere = set().union(*present.values())
        findings = [("the data have", set(range(len(names[column]))) - anywhere, target and column not in given)]
        for split, seen in present.items():
            serious = target and (split == "train" or split not in made)
            findings.append((f"the split '{split}' has", anywhere - seen, serious))
        for who, lost, serious in findings:
            if lost:
                which = listed([names[column][number] for number in sorted(lost)])
                text = f"{who} no row of {len(lost)} of the {len(names[column])} classes of {column}: {which}"
                problems.extend([Problem(None, text, soft=True)] if serious else [])
                notices.extend([] if serious else [f"{text[0].upper()}{text[1:]}."])
    return problems, notices


def refuse(source: str, problems: Sequence[Problem], rows: int, skip_bad: bool) -> None:
    """Raise one error that lists the first 20 problems and counts all; nothing when none is left to be mended.

    Raises:
        RecipeError: there are problems (with `skip_bad`: that leaving out rows does not mend).
    """
    if skip_bad:
        problems = [problem for problem in problems if problem.row is None and not problem.soft]
    if not problems:
        return
    lines = "".join(f"\n  {problem.text}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    bad = len({problem.row for problem in problems if problem.row is not None})
    advice = ""
    if all(problem.soft or problem.row is not None for problem in problems):
        without = f"without the {bad} bad of {rows} rows" if bad else "nevertheless"
        advice = f"\nMend {'it' if len(problems) == 1 else 'them'}, or go on {without}: skip_bad=true."
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise RecipeError(f"The data of {source} have {count}; nothing was started:{lines}{more}{advice}")
