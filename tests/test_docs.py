"""README and docs: their Python runs, commands exist, links lead somewhere, the site builds."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer.main

from gpattern_bench import list_datasets
from gpattern_bench.cli import app
from gpattern_bench.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "leaderboard" / "WHICH_METHOD.md"]
    + [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def python_of(text: str) -> str:
    """The Python of a page as one program, each line where it is on the page."""
    program = ""
    for block in FENCED.finditer(text):
        if block["language"].strip() == "python":
            line = text.count("\n", 0, block.start("code"))
            program += "\n" * (line - program.count("\n")) + block["code"]
    return program


@pytest.mark.parametrize("page", [page for page in TEXTS if python_of(TEXTS[page])])
@pytest.mark.usefixtures("socket_disabled", "brief_training")
@pytest.mark.slow
def test_python_runs_as_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(TEXTS[page]), page, "exec"), {"__name__": "page"})
    if page == "README.md":
        assert (tmp_path / "test-seed0.parquet").is_file()


def test_pages_that_must_have_python_have_it() -> None:
    for page in ("README.md", "docs/quickstart.md", "docs/how-it-is-built.md", "docs/faq.md"):
        assert python_of(TEXTS[page]), page


# Command lines


def command_lines(text: str) -> Iterator[str]:
    """Whole command lines: in fenced or indented blocks."""
    blocks = [block["code"] for block in FENCED.finditer(text) if block["language"] != "python"]
    blocks += re.findall(r"^    (?=gpattern-bench )(.*)", FENCED.sub("", text), re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] == "gpattern-bench":
                yield shlex.join(words[1:])


def mentions(text: str) -> Iterator[str]:
    """Command lines in running text: with gaps, and perhaps without the program's name."""
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCED.sub("", text)):
        words = code.split()
        if words[0] == "gpattern-bench" and len(words) > 1:
            yield " ".join(words[1:])
        elif words[0] in COMMANDS and any(word.startswith("--") for word in words):
            yield code


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and what follows its name; None if there is none."""
    command, rest = PROGRAM, list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        command = command.commands.get(rest.pop(0))
    return command, rest


def unknown_options(command: Any, words: list[str]) -> list[str]:
    """Options that a command, or a group's commands, do not have."""
    options = [*command.params]
    for one in getattr(command, "commands", {}).values():
        options += one.params
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    given = [word.partition("=")[0].rstrip(".,;") for word in words if word.startswith("--")]
    return [name for name in given if name not in known | {"--help"}]


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = set(PROGRAM.commands)


@pytest.mark.parametrize("page", TEXTS)
def test_command_lines_are_complete(page: str) -> None:
    for line in command_lines(TEXTS[page]):
        command, rest = find_command(shlex.split(line))
        assert command is not None, f"no such command: {line}"
        try:
            command.make_context(command.name, rest)
        except Exception as error:  # noqa: BLE001 - whatever the parser finds
            pytest.fail(f"gpattern-bench {line}: {error!r}")


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_the_text_exist(page: str) -> None:
    for line in mentions(TEXTS[page]):
        command, rest = find_command(line.split())
        assert command is not None, f"no such command: {line}"
        assert unknown_options(command, rest) == [], line


def test_a_wrong_command_line_is_noticed() -> None:
    page = "```\n$ A=1 gpattern-bench nope x\ngpattern-bench run a \\\n  --dataset d # why\n```\n"
    assert list(command_lines(page)) == ["nope x", "run a --dataset d"]
    assert find_command(["nope"])[0] is None
    command, rest = find_command(["curate", "xenium", "--out", "x", "--nope"])
    assert unknown_options(command, rest) == ["--nope"]
    assert list(mentions("see `gpattern-bench\nlist`, `predict --calls` and `predict`")) == [
        "list",
        "predict --calls",
    ]


# What the pages must name, and where they lead


def test_every_method_and_dataset_is_described() -> None:
    assert [name for name in METHODS if f"`{name}`" not in TEXTS["docs/methods.md"]] == []
    for page in ("README.md", "docs/data.md"):
        assert [name for name in list_datasets() if f"`{name}`" not in TEXTS[page]] == [], page


@pytest.mark.parametrize("page", TEXTS)
def test_links_in_the_repository_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", TEXTS[page]))
    here = (ROOT / page).parent
    gone = [
        target
        for target in targets
        if not urlsplit(target).scheme
        and urlsplit(target).path
        and not (here / urlsplit(target).path).exists()
    ]
    assert gone == []


# Scores in the pages of methods are those of the board

METRIC_OF = {"AUC": "auc_macro", "ACC": "acc_macro", "F1": "f1_macro", "F1 (val)": "f1_val_macro"}
FITTED = {  # header -> protocol, and the dataset where the rows are methods
    "trained on simulation": ("simulation", None),
    "on the other cell line": ("transfer", None),
    "cross-validated by cell": ("cv-cell", None),
    "`u2os_gold`, by cell": ("cv-cell", "u2os_gold"),
    "3T3 -> U-2 OS": ("transfer", "u2os_gold"),
    "`nih3t3_gold`, by cell": ("cv-cell", "nih3t3_gold"),
    "U-2 OS -> 3T3": ("transfer", "nih3t3_gold"),
    "`synthetic`": ("fit", "synthetic"),
}
SCORED = {"bento": 6, "boosted": 6, "gpsnet": 16, "locfish": 13}  # page -> cells on the board


def read_board() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows of the board by dataset, protocol and method."""
    board = json.loads((ROOT / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))
    rows = [(table, row) for table in board["tables"] for row in table["rows"]]
    # of several trainings of a method, that on the fewest datasets
    rows.sort(key=lambda found: -len(found[1]["trained_on"] or ()))
    return {(table["dataset"], table["protocol"], row["method"]): row for table, row in rows}


def scores_of(page: str, text: str) -> Iterator[tuple[str, str]]:
    """What cells of a page's tables say, and what they should."""
    board = read_board()
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        for first, *cells in rows:
            named = re.match(r"`(\w+)`", first)
            if not named:
                continue
            for column, said in zip(header[1:], cells, strict=True):
                if header[1:] == [*METRIC_OF]:
                    row = board["synthetic", "fit", named[1]]
                    metric = METRIC_OF[column]
                    spread = f" ± {100 * row['std'][metric]:.2f}" if "std" in row else ""
                    yield said, f"{100 * row[metric]:.2f}{spread}"
                elif column in FITTED and re.search(r"\d / \d", said):
                    protocol, dataset = FITTED[column]
                    method = named[1] if dataset else page
                    row = board.get((dataset or named[1], protocol, method))
                    if row is not None:
                        yield said, f"{row['auc_macro']:.3f} / {row['f1_macro']:.3f}"


@pytest.mark.parametrize("page", sorted(path.stem for path in (DOCS / "methods").glob("*.md")))
def test_scores_are_those_of_the_board(page: str) -> None:
    found = list(scores_of(page, TEXTS[f"docs/methods/{page}.md"]))
    assert len(found) == SCORED.get(page, 0)
    assert [said for said, _ in found] == [expected for _, expected in found]


def test_which_method_has_the_numbers_of_the_board() -> None:
    text = TEXTS["leaderboard/WHICH_METHOD.md"]
    board = json.loads((ROOT / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))
    overview = board["overview"]
    for sentence in ("headline", "deck", "order"):
        assert overview[sentence] in text
    said = {re.sub(r"\*", "", cell).strip() for cell in text.split("|")}
    for method in overview["methods"]:
        for f1, level in zip(method["f1_macro"], method["levels"], strict=True):
            if level == "best":
                assert any(cell.startswith(f"{100 * f1:.1f} [") for cell in said), method["method"]
        if method["skill"] is not None:
            low, high = (
                f"{end:.0f}".replace("-", "\N{MINUS SIGN}") for end in method["skill"]["ci"]
            )
            assert f"{method['skill']['value']:.0f} [{low}, {high}]" in said
    numbers = {f"{100 * f1:.1f}" for m in overview["methods"] for f1 in m["f1_macro"] if f1}
    assert {cell.split(" ")[0] for cell in said if re.match(r"\d+\.\d \[", cell)} <= numbers


@pytest.mark.slow
def test_the_picture_is_that_of_the_board() -> None:
    path = DOCS / "picture.py"
    spec = importlib.util.spec_from_file_location("picture", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    drawn = made.picture()
    assert made.PICTURE.read_text(encoding="utf-8") == drawn, "run `python docs/picture.py`"
    assert len(drawn) < 60_000


# The site


class _Html(HTMLParser):
    """What a page loads, where it links to, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        if "id" in values:
            self.places.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("index", "search", "next", "prev"):
            self.assets.append(values.get("href", ""))
        elif "src" in values:
            self.assets.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    needed = ("sphinx", "furo", "myst_parser", "numpydoc")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the site needs {', '.join(missing)}: pip install gpattern-bench[docs]")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(out / "doctrees"), str(DOCS), str(out / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, _Html]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = _Html()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
class TestSite:
    def test_every_page_is_there(self, site: Path) -> None:
        pages = [page.relative_to(DOCS) for page in PAGES if page.is_relative_to(DOCS)]
        assert [p for p in pages if not (site / p).with_suffix(".html").is_file()] == []

    def test_nothing_comes_from_elsewhere(self, site: Path, parsed: dict[Path, _Html]) -> None:
        for path, page in parsed.items():
            for asset in page.assets:
                address = urlsplit(asset)
                if address.scheme == "data":
                    continue
                assert (address.scheme, address.netloc) == ("", ""), f"{path.name}: {asset}"
                assert (path.parent / unquote(address.path)).is_file(), f"{path.name}: {asset}"
        for style in site.rglob("*.css"):
            text = style.read_text(encoding="utf-8")
            assert not re.search(r"(@import|url\()[^;)]*//", text), style.name

    def test_internal_links_resolve(self, site: Path, parsed: dict[Path, _Html]) -> None:
        broken = []
        for path, page in parsed.items():
            for link in page.links:
                address = urlsplit(link)
                if address.scheme or address.netloc:
                    continue
                relative = path.parent / unquote(address.path) if address.path else path
                target = Path(os.path.normpath(relative))
                place = unquote(address.fragment)
                known = parsed[target].places if target in parsed else set()
                if not target.is_file() or (place and target in parsed and place not in known):
                    broken.append(f"{path.relative_to(site)}: {link}")
        assert broken == []

    def test_every_command_and_option_is_in_the_reference(self, site: Path) -> None:
        text = re.sub("<[^>]*>", "", (site / "cli.html").read_text(encoding="utf-8"))
        text = html.unescape(text)
        commands = dict(PROGRAM.commands)
        for name, group in PROGRAM.commands.items():
            for word, command in getattr(group, "commands", {}).items():
                commands[f"{name} {word}"] = command
        for name, command in commands.items():
            section = text.partition(f"gpattern-bench {name} [OPTIONS]")[2]
            section = section.partition(" [OPTIONS]")[0]
            for option in command.params:
                for flag in option.opts if option.param_type_name == "option" else ():
                    assert flag in section, f"{name} {flag}"
        assert "--check alone needs no dataset" in text  # and no dash in place of the hyphens

    def test_the_board_is_inside(self, site: Path, parsed: dict[Path, _Html]) -> None:
        board = site / "leaderboard" / "index.html"
        links = {os.path.normpath(board.parent / link) for link in parsed[board].links}
        expected = ("submit.html", "index.html", "CITATION.cff", "leaderboard/leaderboard.json")
        assert {str(site / name) for name in expected} <= links
        for page in ("index.html", "board.html", "which-method.html", "methods/bento.html"):
            here = parsed[site / page]
            assert str(board) in {os.path.normpath((site / page).parent / a) for a in here.links}
        headline = TEXTS["leaderboard/WHICH_METHOD.md"].partition("**")[2].partition("**")[0]
        assert headline in (site / "which-method.html").read_text(encoding="utf-8")

    def test_the_public_names_are_in_the_reference(self, parsed: dict[Path, _Html]) -> None:
        import gpattern_bench
        from gpattern_bench import errors
        from gpattern_bench.methods import gpsnet

        names = {f"gpattern_bench.{name}" for name in gpattern_bench.__all__}
        names |= {f"gpattern_bench.errors.{name}" for name in errors.__all__}
        names |= {f"gpattern_bench.methods.gpsnet.{name}" for name in gpsnet.__all__}
        names |= {
            "gpattern_bench.data.cells.Cell",
            "gpattern_bench.data.cells.Cells",
            "gpattern_bench.data.dataset.Dataset",
            "gpattern_bench.evaluate.evaluator.Result",
            "gpattern_bench.methods.METHODS",
            "gpattern_bench.methods.base.About",
            "gpattern_bench.methods.base.Method",
            "gpattern_bench.methods.get_method",
            "gpattern_bench.predictions.write_predictions",
            "gpattern_bench.run.run_method",
        }
        api = next(page for path, page in parsed.items() if path.name == "api.html")
        assert names - api.places == {"gpattern_bench.__version__"}
