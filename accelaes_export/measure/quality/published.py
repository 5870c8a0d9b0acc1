"""Figures that papers report, as data, to be shown apart from measured ones and labelled.

One YAML file a paper in engines/published/, installed as package data. Figures are text, exactly as printed. They were
measured by others, elsewhere, and never enter a `QualityReport` or a column of measured figures.
"""

from __future__ import annotations

import re
from importlib import resources

import yaml
from pydantic import Field, ValidationError, model_validator

from accelaes_export.contract.records import Record
from accelaes_export.errors import InputError
from accelaes_export.measure.quality.report import Better

LABEL = "Published, not measured here"
"""Stands over every published figure, wherever it is shown."""

_FIGURE = re.compile(r"~?-?\d+(\.\d+)?")


class Column(Record):
    """What a column of figures is.

    Attributes:
        unit: "s", "×", "%" ..., or ''.
        better: which way is good; "neither" for a setting.
    """

    title: str
    unit: str = ""
    better: Better = "neither"


class PublishedTable(Record):
    """One table, or one model's part of one.

    Attributes:
        number: the paper's, e.g. "5" or "6a".
        model: as the paper calls it.
        recipes: of that same model.
        ablation: what its rows vary; '' where they are whole methods, each as its authors would have it.
        steps, resolution, gpu, prompts: as stated, '' where they aren't, or differ from row to row.
        note: what else must be known to read it, or ''.
        rows_are: what the first cell of a row names, e.g. "method".
        columns: of the other cells.
        rows: name and figures.
    """

    number: str
    model: str
    recipes: tuple[str, ...] = Field(min_length=1)
    ablation: str = ""
    steps: str = ""
    resolution: str = ""
    gpu: str = ""
    prompts: str = ""
    note: str = ""
    rows_are: str
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[tuple[str, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_fill_the_columns_with_figures(self) -> PublishedTable:
        for row in self.rows:
            if len(row) != 1 + len(self.columns):
                raise InputError(
                    f"table {self.number}: row {row[0]!r} has {len(row)} cells; give a name and {len(self.columns)} "
                    "figures."
                )
            for figure in row[1:]:
                if not _FIGURE.fullmatch(figure):
                    raise InputError(
                        f"table {self.number}: {figure!r} in row {row[0]!r} is no figure; give digits as printed, "
                        "without their unit."
                    )
        return self

    @property
    def setting(self) -> str:
        """Model, steps, resolution and GPU, as far as stated."""
        steps = f"{self.steps} steps" if self.steps else ""
        return ", ".join(part for part in (self.model, steps, self.resolution, self.gpu) if part)

    @property
    def remark(self) -> str:
        """What stands under it: prompts, as far as stated, and the note."""
        prompts = f"Prompts: {self.prompts}." if self.prompts else ""
        return f"{prompts} {self.note}".strip()


class Paper(Record):
    """A paper and those of its tables that a reader of measured figures would compare with.

    Attributes:
        name: the method's.
        source: where it is to be had, and by which version tables are counted.
    """

    name: str
    title: str
    year: int
    source: str
    tables: tuple[PublishedTable, ...] = Field(min_length=1)

    def heading(self, table: PublishedTable) -> str:
        """The line over a table: that it is published, by whom, where, and of what."""
        varied = f", {table.ablation}" if table.ablation else ""
        return f"{LABEL}: {self.name}, table {table.number}{varied} ({table.setting})"


def papers() -> tuple[Paper, ...]:
    """All papers with figures, by file name."""
    files = (file for file in resources.files("accelaes_export.engines").joinpath("published").iterdir())
    named = sorted((file for file in files if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(parse(file.read_text(encoding="utf-8"), file.name) for file in named)


def papers_about(recipe: str) -> tuple[Paper, ...]:
    """Papers with tables about the model of the recipe called `recipe`, with those tables alone; () for most recipes.

    It is the very model: figures of another size or version of the family are none of its own.
    """
    found = []
    for paper in papers():
        tables = tuple(table for table in paper.tables if recipe in table.recipes)
        if tables:
            found.append(paper.model_copy(update={"tables": tables}))
    return tuple(found)


def parse(text: str, where: str) -> Paper:
    """A paper from YAML; InputError names `where` and what is wrong first."""
    try:
        data = yaml.load(text, Loader=yaml.BaseLoader)  # everything is text: 0.2640 keeps its last digit
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return Paper.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        field = ".".join(map(str, first["loc"]))
        said = str(cause) if isinstance(cause, InputError) else f"{field or 'the file'}: {first['msg']}; correct it."
        raise InputError(f"{where}: {said}") from error
