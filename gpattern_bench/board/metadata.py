"""Metadata of a submission: ``submission.yaml``, its checks, and its JSON Schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gpattern_bench.base.files import write_text
from gpattern_bench.base.validation import shorten
from gpattern_bench.board.labels import LONGEST, check_label, check_text
from gpattern_bench.methods import METHODS
from gpattern_bench.methods.base import About
from gpattern_bench.methods.controls import GenePrior, MoleculeCount, Oracle, Prevalence

__all__ = [
    "CONTROLS",
    "LARGEST_READ",
    "METADATA",
    "SCHEMA",
    "Metadata",
    "PredictionFile",
    "Sha256",
    "parse_yaml",
    "placeholders",
    "schema_drift",
    "schema_text",
    "write_schema",
]

METADATA, SCHEMA = "submission.yaml", "schema.json"
LARGEST_READ = {".yaml": 1 << 18, ".json": 64 << 20, ".parquet": 1 << 32, "": 20 << 20}
"""Most bytes of a file in a submission, by suffix; ours have a hundredth."""
CONTROLS: dict[str, About] = {
    control.about.name: control.about for control in (Prevalence, GenePrior, MoleculeCount, Oracle)
}
"""The package's controls. Only they are references on the board, and only `oracle` sees labels."""
_AUTHORS = "The gpattern-bench developers"  # of the package's methods
_PLACEHOLDER = re.compile(r"\s*<[^<>]+>\s*")
_STEM = r"(test|val)-seed([0-9]+)[A-Za-z0-9_.-]*"
_FILE = rf"^predictions/[A-Za-z0-9_][A-Za-z0-9_.-]*/{_STEM}\.parquet$"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: a reader sees the first, a program the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"the key {shorten(repeated)} stands twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises
    ------
    ValueError
        The text is not YAML, has a key twice, or a value does not fit its tag.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a value that does not fit its tag raises anything
        raise ValueError(f"not YAML: {error!r}") from error


def placeholders(value: Any) -> dict[str, str]:
    """Find texts still of the form ``<what to write here>``, by their keys.

    A list or dict that YAML aliases repeat is searched once.

    >>> placeholders({"label": "Mine", "authors": ["<First Author>"]})
    {'authors.0': '<First Author>'}
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    left = [("", value)]
    while left:
        name, value = left.pop()
        if isinstance(value, str):
            if _PLACEHOLDER.fullmatch(value):
                found[name] = value
            continue
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        left += [
            (f"{name}.{shorten(key)}" if name else shorten(key), item) for key, item in items[::-1]
        ]
    return found


def _filled(text: str) -> str:
    if not text.strip() or _PLACEHOLDER.fullmatch(text):
        raise ValueError("expected your text, got the template's placeholder or nothing")
    return text


def _filled_text(text: str) -> str:
    return check_text(_filled(text))


def _filled_label(text: str) -> str:
    return check_label(_filled(text))


# One validator each: pydantic before 2.12 drops all but the last of several beside a Field.
_Text = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_filled_text)]
_Label = Annotated[str, Field(min_length=1, max_length=LONGEST), AfterValidator(_filled_label)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$", max_length=60)]
_TrainedOn = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.-]+)?$", max_length=60)
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictionFile(_Frozen):
    """A prediction file of a submission: what its bytes are and, if not beside it, where."""

    path: str = Field(pattern=_FILE, description="Below the submission's folder.")
    bytes: int = Field(ge=1, le=1 << 32, description="Size.")
    sha256: Sha256 = Field(description="Hash of the bytes.")
    url: str | None = Field(
        default=None,
        pattern="^https://",
        description="Public address that gives the file, where it is too large for the repository.",
    )

    @property
    def seed(self) -> int:
        """Seed in the file's name."""
        return int(re.findall(r"-seed(\d+)", self.path)[-1])


class Metadata(_Frozen):
    """What a submission says of its method; unknown keys are errors.

    Its parameters, times, hardware and date are not here: the run measures them.
    """

    method: _Name = Field(
        description="Name of the folder and of the method in the prediction files.",
    )
    label: _Label = Field(
        description="Name on the board: letters of one script, digits, spaces and ,()+-_./&'."
    )
    kind: Literal["control", "baseline", "model"] = Field(
        description="Controls look at no coordinates and have no rank; the rest is ranked."
    )
    status: Literal["active", "superseded", "withdrawn"] = Field(
        "active", description="Superseded ones are marked on the board, withdrawn ones not shown."
    )
    variant_of: tuple[_Name, ...] = Field(
        (),
        description="Methods of the same authors that it is a variant or an ensemble of.",
    )
    summary: _Text = Field(description="What it does, in one sentence.")
    authors: tuple[_Text, ...] = Field(min_length=1, description="Who made it.")
    contact: _Text = Field(description="Where questions go: an address or a page.")
    reference: _Text = Field(description="Paper or preprint.")
    code: _Text = Field(description="Where the code is.")
    licence: _Text = Field(description="Licence of the code.")
    inputs: tuple[
        Literal["coordinates", "gene", "cell outline", "nucleus outline", "labels"], ...
    ] = Field(description="What the method looks at when it predicts.")
    trained_on: tuple[_TrainedOn, ...] | None = Field(
        description="Of train, val, simulated and names of other datasets; null: learns nothing."
    )
    external_data: _Text | None = Field(
        None, description="Data or weights from outside the benchmark that it uses; null: none."
    )
    deterministic: bool = Field(description="Whether the same seed gives the same scores.")
    rules_for: tuple[_Name, ...] | None = Field(
        None,
        description="Patterns that it has a rule for, where it lacks some; the board marks them.",
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...] = Field(
        (), description="Seeds of the prediction files; written by `submit`."
    )
    files: tuple[PredictionFile, ...] = Field(
        (), description="The prediction files; written by `submit`, checked whenever it is read."
    )

    @field_validator("trained_on")
    @classmethod
    def _never_on_test(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and "test" in names:
            raise ValueError("the labels of test are never trained on")
        if names == ():
            raise ValueError("expected what it was fitted on, or null if it learns nothing")
        if names is not None and len(set(names)) < len(names):
            raise ValueError("name each once")
        return names

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if shipped := CONTROLS.get(self.method):
            if (self.kind, self.inputs) != (shipped.kind, shipped.inputs):
                raise ValueError(
                    f"method: {self.method} is a control of the package, of kind {shipped.kind} "
                    f"and with inputs [{', '.join(shipped.inputs)}]; give yours another name"
                )
        elif "labels" in self.inputs:
            raise ValueError("inputs: only the package's oracle is shown labels; predict without")
        elif (self.kind == "control") == ("coordinates" in self.inputs):
            raise ValueError(
                f"kind: {self.kind}, with inputs [{', '.join(self.inputs)}]: what looks at "
                "coordinates is a baseline or a model, what does not is a control"
            )
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if self.method not in METHODS and _AUTHORS in self.authors:
            raise ValueError(f"authors: {_AUTHORS!r} are those of the package's methods")
        if self.method in self.variant_of:
            raise ValueError("variant_of: name other methods")
        return self

    @model_validator(mode="after")
    def _files_agree(self) -> Self:
        paths = [file.path for file in self.files]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"files: listed more than once: {', '.join(twice)}; run submit again")
        seeds = sorted({file.seed for file in self.files})
        if seeds != sorted(self.seeds):
            raise ValueError(
                f"seeds: expected those of the files, {seeds}, got {sorted(self.seeds)}; run "
                "submit again"
            )
        return self

    @classmethod
    def of(cls, about: About) -> Metadata:
        """Make the metadata of a method that ships with this package, without files."""
        return cls.model_validate(
            {
                "method": about.name,
                "label": about.label,
                "kind": about.kind,
                "summary": about.summary,
                "authors": (_AUTHORS,),
                "contact": "the issues of this repository",
                "reference": about.reference,
                "code": "gpattern_bench/methods",
                "licence": "MIT",
                "inputs": about.inputs,
                "trained_on": ("train",) if about.learns else None,
                "deterministic": True,
                "rules_for": about.rules_for,
            }
        )

    def with_files(self, files: tuple[PredictionFile, ...]) -> Metadata:
        """Replace the list of files, and the seeds."""
        ordered = tuple(sorted(files, key=lambda file: file.path))
        seeds = tuple(sorted({file.seed for file in ordered}))
        return self.model_copy(update={"files": ordered, "seeds": seeds})

    def write(self, folder: Path) -> None:
        """Write ``submission.yaml`` into a folder."""
        write_text(folder / METADATA, self.text())

    def text(self, previous: str = "") -> str:
        """Give ``submission.yaml``; if only files changed, `previous` stays with its comments."""
        values = self.model_dump(mode="json")
        for file in values["files"]:
            if file["url"] is None:
                del file["url"]
        kept = re.sub(r"^(seeds|files):.*\n(?:[ -].*\n)*", "", previous, flags=re.MULTILINE)
        tail = {key: values[key] for key in ("seeds", "files")}
        text = kept.rstrip("\n") + "\n" + _dumped(tail)
        try:
            if previous and Metadata.model_validate(yaml.safe_load(text)) == self:
                return text
        except (yaml.YAMLError, ValueError):
            pass
        return _dumped(values)


def schema_text() -> str:
    """Give ``schema.json``: the JSON Schema of ``submission.yaml``, for editors."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Metadata.model_json_schema(),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def schema_drift(submissions: Path) -> list[str]:
    """Say how ``schema.json`` in the folder of submissions differs from the model."""
    path = submissions / SCHEMA
    if not path.is_file():
        return [f"{path} is missing"]
    same = path.read_bytes() == schema_text().encode()
    return [] if same else [f"{path} is not the schema of this version"]


def write_schema(submissions: Path) -> None:
    """Write ``schema.json`` into the folder of submissions."""
    write_text(submissions / SCHEMA, schema_text())


def _dumped(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
