"""Commands that draw figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpattern_bench.cli.options import Group, Name, app, echo, examples
from gpattern_bench.errors import GPatternBenchError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

plot = typer.Typer(
    cls=Group,
    help="Draw a figure of the paper from data at hand: SVG, PDF or PNG.",
    epilog=examples("plot splits synthetic --out splits.svg", "plot cell --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(plot, name="plot")

_Out = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="Figure to write: .svg, .pdf or .png.")
]


@plot.command("splits", epilog=examples("plot splits synthetic --out splits.svg"))
def plot_splits_(name: Name, out: _Out) -> None:
    """Draw cells, and molecules and genes per cell, of each split (figure 6)."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.figures import plot_splits

    _save(plot_splits(load_dataset(name)), out)


@plot.command(
    "patterns",
    epilog=examples(
        "plot patterns synthetic --out patterns.pdf",
        "plot patterns synthetic --by gene --out genes.svg",
    ),
)
def plot_patterns_(
    name: Name,
    out: _Out,
    by: Annotated[
        Literal["pair", "gene"], typer.Option(help="Count pairs, or genes as the paper.")
    ] = "pair",
) -> None:
    """Draw the patterns of the labelled pairs, or genes, of each split (figure 7)."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.figures import plot_patterns

    _save(plot_patterns(load_dataset(name), by), out)


@plot.command(
    "cell",
    epilog=examples(
        "plot cell synthetic --out cell.svg",
        "plot cell synthetic bento.parquet sprawl.parquet --out cell.svg",
    ),
)
def plot_cell_(
    name: Name,
    out: _Out,
    predictions: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Prediction files.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(metavar="ID", help="Default: one with many patterns.")
    ] = None,
    gene: Annotated[
        list[str] | None,
        typer.Option(metavar="GENE", help="Repeatable; default: one per pattern."),
    ] = None,
) -> None:
    """Draw genes of one cell, with labels and predictions (figures 5, 8-10)."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.figures import plot_cell

    _save(plot_cell(load_dataset(name), cell, gene or (), predictions or ()), out)


@plot.command("ablation", epilog=examples("plot ablation ablation.json --out ablation.svg"))
def plot_ablation_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output of `ablation --json`.")],
    out: _Out,
) -> None:
    """Draw an ablation, ours and the paper's numbers (figure 4)."""
    import json

    from gpattern_bench.figures import plot_ablation

    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GPatternBenchError(
            f"{file} is not JSON ({error}); expected what `gpattern-bench ablation --json` prints"
        ) from error
    _save(plot_ablation(rows), out)


@plot.command(
    "training",
    epilog=examples("plot training runs/gpsnet/synthetic/model-seed0 --out training.svg"),
)
def plot_training_(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Model folders of GPSNet.")
    ],
    out: _Out,
) -> None:
    """Draw training curves by epoch: losses, and AUC and F1 on val."""
    from gpattern_bench.figures import plot_training

    _save(plot_training(folders), out)


def _save(figure: Figure, out: Path) -> None:
    from gpattern_bench.figures import save_figure

    echo(str(save_figure(figure, out)))
