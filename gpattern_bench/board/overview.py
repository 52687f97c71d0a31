"""Overview: which method to use, as a matrix of methods and tests and sentences about it.

A test is a dataset and a way of fitting (:class:`gpattern_bench.board.leaderboard.Table`). Every
word and number of the board's first screen comes from here; Markdown and the page only set them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import hypot, isnan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.files import plain
from gpattern_bench.board.leaderboard import Row, Table
from gpattern_bench.evaluate.bootstrap import CONFIDENCE, interval

__all__ = [
    "LEVELS",
    "Answer",
    "Comparison",
    "Entry",
    "Group",
    "Level",
    "Overview",
    "Skill",
    "Test",
    "Without",
    "build_overview",
    "in_words",
]

Level = Literal["best", "between", "control", "behind"]
LEVELS: dict[Level, str] = {
    "best": "level with the best",
    "between": "behind the best, ahead of every control",
    "control": "not demonstrably ahead of a control",
    "behind": "behind a control",
}
"""How far a method's F1 on a test can be told from the best one and from the best control."""
_FEW = 30  # cells below which a tie may only mean too few
_NAMED = 4  # most methods of an answer
_NEXT = 3  # most methods that come next in the deck
# From most labels of one's own to none: protocol, labels that a reader has, the same in a word.
_LABELS = (
    ("fit", "Many of your own", "many"),
    ("cv-cell", "A few of your own", "few"),
    ("transfer", "Another dataset's", "other"),
    ("simulation", "None", "none"),
    ("untrained", "None, nothing fitted", "nothing"),
)
# What most methods need: who does without it can say so.
_NEEDS = (("cell outline", "cell outline"), ("nucleus outline", "nucleus"))

_Floats = NDArray[np.float64]
_Part = tuple[float, _Floats, int]  # of a dataset: estimate, replicates, degrees of freedom


@dataclass(frozen=True)
class Test:
    """A column: a table of the board with a control that is blind to the labels.

    ``name`` is the dataset in short; ``clusters`` is what intervals rest on, in words.
    """

    __test__ = False  # not for pytest

    table: Table
    control: Row
    name: str
    clusters: str

    @property
    def id(self) -> str:
        """Where the table stands on the page."""
        return self.table.id


@dataclass(frozen=True)
class Skill:
    """Mean skill, 0 as the best control and 100 perfect.

    ``ci`` is its 95 % interval, ``left_out`` its range when one dataset is left out; None where
    they are undefined.
    """

    value: float
    ci: tuple[float, float] | None
    left_out: tuple[float, float] | None


@dataclass(frozen=True)
class Entry:
    """A method: its row and level on each test (None: not run), and what sums them up.

    ``skill`` is None unless it was run on every test; ``longest`` is the longest fit and
    prediction, s (:attr:`~gpattern_bench.board.leaderboard.Row.total_time`).
    """

    method: str
    label: str
    needs: str
    rows: list[Row | None]
    levels: list[Level | None]
    skill: Skill | None
    longest: float | None
    learns: bool
    inputs: tuple[str, ...]

    def count(self, level: Level) -> int:
        """Count its tests of a level."""
        return self.levels.count(level)

    @property
    def n_best(self) -> int:
        """Tests on which it is level with the best."""
        return self.count("best")

    @property
    def n_run(self) -> int:
        """Tests on which it was run."""
        return sum(row is not None for row in self.rows)

    @property
    def n_not_ahead(self) -> int:
        """Tests on which it is not demonstrably ahead of a control."""
        return self.count("control") + self.count("behind")


@dataclass(frozen=True)
class Answer:
    """A method to use; `where` names the only tests of the group for which it is the answer."""

    label: str
    where: str


@dataclass(frozen=True)
class Group:
    """Tests that ask for the same labels; ``on_all`` if its answers hold on each of them."""

    labels: str
    word: str
    protocol: str
    tests: list[int]
    answers: list[Answer]
    on_all: bool


@dataclass(frozen=True)
class Without:
    """What to use without something that most methods need: methods by skill, what they reach."""

    title: str
    methods: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """One method less another on a test, or in mean skill (`test` None); in points.

    ``ci`` is the 95 % interval of the paired difference.
    """

    test: int | None
    difference: float
    ci: tuple[float, float] | None


@dataclass(frozen=True)
class Overview:
    """The first screen: matrix, answers and sentences.

    Attributes
    ----------
    tests : list of Test
        Grouped by labels, then by name.
    groups : list of Group
    entries : list of Entry
        Methods run on every test by mean skill, then the others by number of tests.
    headline, deck : str
        What the board says; how sure.
    without : list of Without
    order : str
        Whether the order depends on a dataset; empty where none can be left out.
    left_out : list of str
        Datasets without a control, which are no tests.
    imitated : list of str
        Datasets whose labels are a classifier's calls, which are no tests: scores say how well a
        method imitates it.
    """

    tests: list[Test]
    groups: list[Group]
    entries: list[Entry]
    headline: str
    deck: str
    without: list[Without]
    order: str
    left_out: list[str]
    imitated: list[str]

    @property
    def n_datasets(self) -> int:
        """Datasets of the tests."""
        return len({test.table.dataset for test in self.tests})

    @property
    def hardware(self) -> list[str]:
        """Devices of the runs."""
        rows = (row for entry in self.entries for row in entry.rows if row)
        return sorted({row.device for row in rows if row.device})

    def compare(self, one: str, other: str) -> list[Comparison]:
        """Compare two methods on the tests of both, and in mean skill if that is all tests.

        Raises
        ------
        KeyError
            A method is not in the overview.
        """
        a, b = self._by_name[one], self._by_name[other]
        found = []
        for k, (test, mine, theirs) in enumerate(zip(self.tests, a.rows, b.rows, strict=True)):
            if mine is None or theirs is None:
                continue
            difference = _f1(mine) - _f1(theirs)
            drawn = _drawn(test, mine) - _drawn(test, theirs)
            ends = interval(
                difference, drawn, test.table.degrees_of_freedom, (-1.0, 1.0), biased=True
            )
            ci = None if isnan(ends[0]) else (100 * ends[0], 100 * ends[1])
            found.append(Comparison(k, 100 * difference, ci))
        if a.skill and b.skill:
            parts = [
                (mine[0] - theirs[0], mine[1] - theirs[1], mine[2])
                for mine, theirs in zip(
                    _parts(self.tests, a.rows), _parts(self.tests, b.rows), strict=True
                )
            ]
            difference = sum(part[0] for part in parts)
            found.append(Comparison(None, difference, _interval_of_sum(parts)))
        return found

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {entry.method: entry for entry in self.entries}

    def to_json(self) -> dict[str, Any]:
        """Give the part of ``leaderboard.json``; None = not run, or undefined."""
        found: dict[str, Any] = plain(
            {
                "headline": self.headline,
                "deck": self.deck,
                "order": self.order,
                "tests": [
                    {
                        "dataset": test.table.dataset,
                        "version": test.table.version,
                        "protocol": test.table.protocol,
                        "control": test.control.method,
                    }
                    for test in self.tests
                ],
                "methods": [
                    {
                        "method": entry.method,
                        "f1_macro": [row and row.f1 for row in entry.rows],
                        "levels": entry.levels,
                        "skill": entry.skill and asdict(entry.skill),
                    }
                    for entry in self.entries
                ],
            }
        )
        return found


def build_overview(tables: Sequence[Table]) -> Overview | None:
    """Sum up the tables of a board; None without a candidate and a control to compare it with.

    Of each dataset the newest version counts. Candidates are ranked methods that are not
    superseded. Of a method with several rows in a table the one fitted on most datasets counts:
    that choice does not look at scores.

    Parameters
    ----------
    tables : sequence of Table
    """
    newest = _newest(table for table in tables if table.labelled_by is None)
    known = [(table, control) for table in newest if (control := _control(table))]
    names = _short({table.dataset for table, _ in known})
    place = {protocol: k for k, (protocol, _, _) in enumerate(_LABELS)}
    known.sort(key=lambda pair: (place[pair[0].protocol], pair[0].dataset))
    tests = [Test(t, control, names[t.dataset], _clusters(t)) for t, control in known]
    entries = _entries(tests)
    if not entries:
        return None
    return Overview(
        tests=tests,
        groups=_groups(tests, entries),
        entries=entries,
        headline=_headline(entries, len(tests)),
        deck=" ".join(filter(None, (_leads(tests, entries), _next(entries), _caution(tests)))),
        without=_without(entries),
        order=_order(tests, entries),
        left_out=sorted({table.dataset for table in newest if _control(table) is None}),
        imitated=sorted({table.dataset for table in tables if table.labelled_by}),
    )


def _newest(tables: Iterable[Table]) -> list[Table]:
    tables = list(tables)

    def age(version: str) -> tuple[list[int], str]:
        return [int(part) for part in version.split(".") if part.isdecimal()], version

    newest = {
        name: max((table.version for table in tables if table.dataset == name), key=age)
        for name in {table.dataset for table in tables}
    }
    return [table for table in tables if table.version == newest[table.dataset]]


def _control(table: Table) -> Row | None:
    """Return the best control that is blind to the labels; rows come by F1."""
    found = (r for r in table.rows if r.is_reference and r.is_verified and r.f1 is not None)
    return next(found, None)


def _short(names: Iterable[str]) -> dict[str, str]:
    """Shorten names to their first words, as far as they stay apart.

    >>> _short(["u2os_gold", "cosmx_lung_mini", "cosmx_lung_big"])["cosmx_lung_big"]
    'cosmx_lung_big'
    """
    names = sorted(names)

    def short(name: str) -> str:
        words = name.split("_")
        for n in range(1, len(words)):
            head = "_".join(words[:n])
            if head and sum(f"{other}_".startswith(f"{head}_") for other in names) == 1:
                return head
        return name

    return {name: short(name) for name in names}


def _clusters(table: Table) -> str:
    return f"{table.n_clusters} {'fields' if table.clusters == 'fov' else 'cells'}"


def _f1(row: Row) -> float:
    assert row.f1 is not None
    return row.f1


def _drawn(test: Test, row: Row) -> _Floats:
    """Return the replicates of a row's F1."""
    return test.table.replicates[next(k for k, r in enumerate(test.table.rows) if r is row)]


def _entries(tests: Sequence[Test]) -> list[Entry]:
    found: dict[str, list[Row | None]] = {}
    for k, test in enumerate(tests):
        for row in test.table.rows:
            if row.is_ranked and row.f1 is not None and row.submission_status != "superseded":
                rows = found.setdefault(row.method, [None] * len(tests))
                rows[k] = _of_most_data(rows[k], row)
    entries = [_entry(tests, rows) for _, rows in sorted(found.items())]
    return sorted(
        entries, key=lambda e: (-e.n_run, -(e.skill.value if e.skill else 0.0), -e.n_best, e.method)
    )


def _of_most_data(known: Row | None, row: Row) -> Row:
    """Choose a method's row without a look at the scores: of equally many datasets by name."""
    if known is None:
        return row
    return min(known, row, key=lambda r: (-len(r.trained_on or ()), tuple(r.trained_on or ())))


def _entry(tests: Sequence[Test], rows: list[Row | None]) -> Entry:
    first = next(row for row in rows if row)
    times = [found for row in rows if row and (found := row.total_time) is not None]
    return Entry(
        method=first.method,
        label=first.label,
        needs=_needs(first),
        rows=rows,
        levels=[None if row is None else _level(row) for row in rows],
        skill=_skill(tests, rows) if None not in rows else None,
        longest=max(times, default=None),
        learns=first.labels_used is not None,
        inputs=tuple(first.inputs),
    )


def _level(row: Row) -> Level:
    """Return the first level that matches; without an interval nothing is demonstrated."""
    low, high = row.lift_f1_ci or (None, None)
    if low is None or high is None:
        return "control"
    if high < 0:
        return "behind"
    if low <= 0:
        return "control"
    return "best" if row.tie_group == 1 else "between"


def _needs(row: Row) -> str:
    """Name what a method does without, of what most need."""
    lacking = [name for name, word in _NEEDS if name not in row.inputs]
    spared = [word for name, word in _NEEDS if name in lacking]
    if len(spared) == len(_NEEDS):
        spared = ["outlines"]
    if row.labels_used is None:
        spared.append("labels")
    return f"needs no {in_words(spared, 'or')}" if spared else ""


def _skill(tests: Sequence[Test], rows: Sequence[Row | None]) -> Skill | None:
    if any(_f1(test.control) >= 1 for test in tests):
        return None  # nothing is better than a perfect control
    parts = _parts(tests, rows)
    n = len(parts)
    value = sum(part[0] for part in parts)
    # Each part is a dataset's mean over the number of datasets.
    left_out = [(value - part[0]) * n / (n - 1) for part in parts] if n > 1 else []
    return Skill(
        value,
        _interval_of_sum(parts),
        (min(left_out), max(left_out)) if left_out else None,
    )


def _parts(tests: Sequence[Test], rows: Sequence[Row | None]) -> list[_Part]:
    """Give, per dataset, its share of the mean skill: the estimate, and its replicates.

    Of a test the skill is 100 (F1 - c) / (100 - c), with the F1 c of the best control; of a
    dataset it is the mean over its tests, whose replicates are paired: they draw the same cells.
    """
    datasets = list(dict.fromkeys(test.table.dataset for test in tests))
    parts = []
    for name in datasets:
        here = [(t, r) for t, r in zip(tests, rows, strict=True) if r and t.table.dataset == name]
        weight = 1 / (len(datasets) * len(here))
        value, drawn = 0.0, np.zeros(len(_drawn(*here[0])))
        for test, row in here:
            control, of_control = _f1(test.control), _drawn(test, test.control)
            value += weight * 100 * (_f1(row) - control) / (1 - control)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = (_drawn(test, row) - of_control) / (1 - of_control)
            drawn += weight * 100 * np.where(np.isfinite(ratio), ratio, np.nan)
        parts.append((value, drawn, min(test.table.degrees_of_freedom for test, _ in here)))
    return parts


def _interval_of_sum(parts: Sequence[_Part]) -> tuple[float, float] | None:
    """Return the 95 % interval of a sum over independent datasets.

    Variances V_d and biases b_d of the bootstraps add; the degrees of freedom are
    V^2 / sum(V_d^2 / df_d), after Satterthwaite.
    """
    from scipy.special import stdtrit  # quantile of t, without scipy.stats

    variances, biases = [], []
    for value, drawn, freedom in parts:
        known = drawn[~np.isnan(drawn)]
        if freedom < 1 or len(known) < 2 or 2 * len(known) <= len(drawn):
            return None
        variances.append(float(np.var(known, ddof=1)))
        biases.append(float(np.mean(known)) - value)
    middle = sum(part[0] for part in parts) - sum(biases)
    total = sum(variances)
    spread = sum(v * v / part[2] for v, part in zip(variances, parts, strict=True))
    nu = total * total / spread if spread else float(sum(part[2] for part in parts))
    half = float(stdtrit(nu, (1 + CONFIDENCE) / 2)) * hypot(total**0.5, sum(biases))
    return middle - half, middle + half


def _headline(entries: Sequence[Entry], n: int) -> str:
    most = max(entry.n_best for entry in entries)
    if most == 0:
        return "No method is level with the best and ahead of every control"
    names = [entry.label for entry in _by_skill(entries) if entry.n_best == most]
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
    where = f"{most} of {n} tests" if most < n else "the only test" if n == 1 else f"all {n} tests"
    verb = "is" if len(names) == 1 else "are"
    return f"{in_words(names)} {verb} level with the best on {where}"


def _leads(tests: Sequence[Test], entries: Sequence[Entry]) -> str:
    """Say on how many tests one method leads alone, or how many tie with the highest F1."""
    leaders = [_tied(test) for test in tests]
    counts = [len(methods) - 1 for methods in leaders if methods]
    alone = counts.count(0)
    if not counts or len(entries) < 2:
        return ""
    n = len(tests)
    if alone:
        where = "On the only test" if n == 1 else f"On {alone} of {n}" if alone < n else "On each"
        return f"{where} one method leads alone."
    low, high = min(counts), max(counts)
    others = f"{low} to {high} others tie" if low < high else (
        "1 other ties" if low == 1 else f"{low} others tie"
    )  # fmt: skip
    return f"No method leads alone{' on any' if n > 1 else ''}: {others} with the highest F1."


def _tied(test: Test) -> set[str]:
    """Name the candidates of the first tie group."""
    return {row.method for row in test.table.rows if row.is_ranked and row.tie_group == 1}


def _next(entries: Sequence[Entry]) -> str:
    """Name who follows the headline, whole ranks of equals at a time."""
    counts = sorted({entry.n_best for entry in entries if entry.n_best}, reverse=True)[1:]
    named: list[str] = []
    for count in counts:
        equal = [entry for entry in _by_skill(entries) if entry.n_best == count]
        if len(named) + len(equal) > _NEXT:
            break
        named += [f"{entry.label} ({count} of {len(entry.rows)})" for entry in equal]
    if not named:
        return ""
    return f"Next {'come' if len(named) > 1 else 'comes'} {in_words(named)}."


def _caution(tests: Sequence[Test]) -> str:
    few = {
        test.name: test.table.n_clusters
        for test in tests
        if test.table.clusters != "fov" and test.table.n_clusters < _FEW
    }
    if not few:
        return ""
    return (
        f"Tests on {in_words(few)} rest on {in_words(map(str, few.values()))} cells: a tie there "
        "may only mean too few."
    )


def _groups(tests: Sequence[Test], entries: Sequence[Entry]) -> list[Group]:
    groups = []
    for protocol, labels, word in _LABELS:
        of = [k for k, test in enumerate(tests) if test.table.protocol == protocol]
        if not of:
            continue
        on_all = [e for e in entries if all(e.levels[k] == "best" for k in of)]
        answers = [Answer(entry.label, "") for entry in _by_skill(on_all)[:_NAMED]]
        groups.append(
            Group(labels, word, protocol, of, answers or _of_each(tests, entries, of), bool(on_all))
        )
    return groups


def _of_each(tests: Sequence[Test], entries: Sequence[Entry], of: Sequence[int]) -> list[Answer]:
    """Name a method per test of a group on which none is level with the best everywhere.

    It is the one that is so on most of these tests; of equals the one with the higher mean skill,
    then F1.
    """
    chosen: dict[str, list[int]] = {}
    by_label = {entry.label: entry for entry in entries}
    for k in of:
        found = [e for e in entries if e.levels[k] == "best"]
        order = {
            e.label: (-sum(e.levels[j] == "best" for j in of), *_skill_key(e)[:2], -_f1_on(e, k))
            for e in found
        }
        for label in sorted(order, key=lambda name: (order[name], by_label[name].method))[:1]:
            chosen.setdefault(label, []).append(k)
    return [
        Answer(label, in_words(tests[k].name for k in where)) for label, where in chosen.items()
    ][:_NAMED]


def _f1_on(entry: Entry, test: int) -> float:
    row = entry.rows[test]
    return _f1(row) if row else 0.0


def _without(entries: Sequence[Entry]) -> list[Without]:
    """Say what to use without a nucleus, without any outline, and without a fit."""
    asked: Mapping[str, Callable[[Entry], bool]] = {
        "No nuclei": lambda e: "nucleus outline" not in e.inputs,
        "No outlines": lambda e: not any("outline" in name for name in e.inputs),
        "Nothing to fit": lambda e: not e.learns,
    }
    complete = [entry for entry in entries if entry.n_run == len(entry.rows)]
    return [
        _answer_without(title, [entry for entry in complete if does_without(entry)])
        for title, does_without in asked.items()
    ]


def _answer_without(title: str, entries: Sequence[Entry]) -> Without:
    if not entries:
        return Without(title, "No method", " was run on every test.")
    named = entries[:_NAMED]
    n = len(named[0].rows)
    best = in_words(str(entry.n_best) for entry in named)
    not_ahead = in_words(str(entry.n_not_ahead) for entry in named)
    return Without(
        title,
        in_words(entry.label for entry in named),
        f"{' is the only one' if len(entries) == 1 else ''}: level with the best on {best} of {n} "
        f"test{'s' if n > 1 else ''}, not ahead of a control on {not_ahead}.",
    )


def _order(tests: Sequence[Test], entries: Sequence[Entry]) -> str:
    """Say how far down the order is the same whichever dataset is left out."""
    complete = [entry for entry in entries if entry.skill and entry.skill.left_out]
    if len(complete) < 2:
        return ""
    shares = {e.method: [part[0] for part in _parts(tests, e.rows)] for e in complete}
    order = [entry.method for entry in complete]
    n = len(next(iter(shares.values())))
    kept = len(order)
    for out in range(n):
        left = {m: sum(found) - found[out] for m, found in shares.items()}
        again = sorted(order, key=lambda m: -left[m])
        same = [a == b for a, b in zip(order, again, strict=True)]
        kept = min(kept, same.index(False) if False in same else len(same))
    if kept == 0:
        return "Which method is first depends on the datasets: leaving one out changes it."
    if kept == len(order):
        return "The order is the same whichever dataset is left out."
    if kept == 1:
        return "The first stays first whichever dataset is left out."
    return f"The first {kept} keep their order whichever dataset is left out."


def _by_skill(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=_skill_key)


def _skill_key(entry: Entry) -> tuple[bool, float, str]:
    return entry.skill is None, -entry.skill.value if entry.skill else 0.0, entry.method


def in_words(words: Iterable[str], joint: str = "and") -> str:
    """Join words as a sentence does.

    >>> in_words(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} {joint} {last}" if first else last
