"""Every error that this package raises on purpose: one base class, one subclass per cause."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ChecksumError",
    "EvaluationError",
    "FetchError",
    "GPatternBenchError",
    "MethodError",
    "MissingExtraError",
    "PredictionError",
    "SourceError",
    "SubmissionError",
    "TableError",
    "UnknownDatasetError",
    "UnknownMethodError",
    "WorkersError",
]


_MOST = 2_000  # characters; more is a part of a file, not a message


class GPatternBenchError(Exception):
    """Base class: the text says what, where, expected, got, and the remedy.

    Of a text longer than a page, such as one with all names of a wide table, the middle is left
    out.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(_without_middle(text))


def _without_middle(text: str) -> str:
    if len(text) <= _MOST:
        return text
    half = _MOST // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


class UnknownDatasetError(GPatternBenchError):
    """No dataset has that name or version, and no folder of tables is there."""


class UnknownMethodError(GPatternBenchError):
    """No method has that name."""


class FetchError(GPatternBenchError):
    """A source file could not be obtained from any address."""


class ChecksumError(FetchError):
    """A source file arrived with other bytes than the registry pins."""


class SourceError(GPatternBenchError):
    """A source release is not in the format that its reader expects."""


class MissingExtraError(GPatternBenchError):
    """An optional dependency is needed; the text names the extra that brings it."""


class _ProblemsError(GPatternBenchError):
    """An error that carries every problem found, not only the first.

    Parameters
    ----------
    subject : str
        What was checked, named so that a person finds it (a path, a dataset).
    problems : sequence of str
        One line per problem; line breaks of names in it are escaped.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject = subject
        self.problems = tuple(_without_middle(text.replace("\n", "\\n")) for text in problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = "\n".join(f"  {i}. {text}" for i, text in enumerate(self.problems, 1))
        Exception.__init__(self, f"{subject}: {count}\n{lines}")

    def __reduce__(self) -> tuple[type[_ProblemsError], tuple[str, tuple[str, ...]]]:
        return type(self), (self.subject, self.problems)  # as a worker sends it


class TableError(_ProblemsError):
    """The tables of a dataset break the rules of :mod:`gpattern_bench.tables.schema`."""


class PredictionError(_ProblemsError):
    """A prediction file or table breaks the prediction format."""


class SubmissionError(_ProblemsError):
    """A submission folder is incomplete or inconsistent."""


class EvaluationError(GPatternBenchError):
    """Labels and scores cannot be compared (shapes, values, missing labels)."""


class MethodError(GPatternBenchError):
    """A method cannot be fitted or run on this dataset as asked."""


class WorkersError(GPatternBenchError):
    """Processes or a cluster that should do the work cannot be had, or died."""
