"""``compresskit inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit.cli import options as shared

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.model import Model

_WHY = {"--sensitivity": "its layers are rounded one by one", "--structure": "it is run on samples"}
Rows = Annotated[int, typer.Option("--rows", min=1, help="Maximum number of layers to show, largest first.")]
Spectrum = Annotated[
    bool,
    typer.Option(
        "--spectrum",
        help="Show the rank of each Linear layer and convolution, and the energy kept at several sizes. Needs --arch.",
    ),
]
Sensitivity = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="Show how the output changes when one layer alone is quantized to 4 bits. Needs --data and --arch.",
    ),
]
Structure = Annotated[
    bool,
    typer.Option(
        "--structure",
        help="Show what the model does on samples: R² of one linear layer for each block, units that never or always "
        "switch on, linear regions, symmetry, and what each method that could work would save. Needs --data and "
        "--arch.",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", min=4, help="Maximum number of samples for --structure.", rich_help_panel="Data")
]
Suggest = Annotated[
    str | None,
    typer.Option(
        "--suggest",
        metavar="FILE.yaml|-",
        help="Write a suggested recipe to FILE; - writes to stdout instead of the table.",
        rich_help_panel="Output",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Samples for --structure, --sensitivity or the input shape: .npz, folder of class folders, "
        ".txt/.csv/.jsonl, FILE.py:NAME.",
        rich_help_panel="Data",
    ),
]


def command(
    model: shared.ModelArg,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    key: shared.Key = None,
    rows: Rows = 40,
    spectrum: Spectrum = False,
    sensitivity: Sensitivity = False,
    structure: Structure = False,
    samples: Samples = 256,
    data: Data = None,
    normalize: shared.Normalize = None,
    sequence: shared.Sequence = 128,
    seed: shared.Seed = 0,
    suggest: Suggest = None,
    json: shared.Json = None,
    html: shared.Html = None,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Show the layers of a model and estimate what each compression method could save.

    MACs are counted for one sample. They need the architecture and its input shape, or an ONNX graph. Sizes in fewer
    bits are estimates. Nothing is written except the files of --suggest, --json and --html.
    """
    import json as jsonlib

    from compresskit.cli.console import check_json, progressing, write_json, write_out, write_structure
    from compresskit.cli.inputs import load_model, load_options
    from compresskit.runner.inspecting import inspected
    from compresskit.runner.suggest import suggest as suggestion_for

    check_json(json, (model, arch, data))
    _check(suggest, json, force, (model, arch, data))
    _check_page(html, structure, (model, arch, data))
    # What is to be looked at may be broken: NaN is shown, not refused.
    loaded = load_model(model, load_options(arch, arch_args, input_shape, allow_nonfinite=True, key=key))
    loaded, source = _with_data(
        loaded, data, normalize, sequence, {"--sensitivity": sensitivity, "--structure": structure}
    )
    with progressing(quiet) as progress:
        found = inspected(
            loaded, spectrum=spectrum, sensitivity=source if sensitivity else None,
            structure=source if structure else None, samples=samples, seed=seed, progress=progress,
        )  # fmt: skip
    words = _words(model, arch, arch_args, input_shape, key)
    chosen = suggestion_for(loaded, found, words)
    if found["estimates"]["quantize"]["forms"]:
        found["estimates"]["suggestion"] = {"kind": chosen.kind, "form": chosen.form, "options": list(chosen.options)}
    _write_suggestion(suggest, chosen.recipe, found, force)
    given = _data_words(data, normalize)
    write_structure(found.get("structure"), html, title=str(model), words=(*words, *given))
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if suggest == "-":
        write_out(chosen.recipe)
    elif json != "-" and not quiet:
        from compresskit.render.inspect_view import print_inspection

        print_inspection(found, title=str(model), rows=rows, words=words, data=given)


def _check(suggest: str | None, json: str | None, force: bool, inputs: tuple[Path | str | None, ...]) -> None:
    """Refuse a place for the recipe that can't be written to, before the work.

    Raises:
        UsageError: It exists and isn't to be replaced, is an input, or both documents go to stdout.
    """
    from compresskit.cli.console import check_json
    from compresskit.errors import UsageError

    check_json(suggest, inputs, option="--suggest")
    if suggest is None:
        return
    if suggest == json:
        raise UsageError(
            f"--suggest {suggest} and --json {suggest}: only one document can be written there",
            "give a file name for one of them",
        )
    if suggest != "-" and Path(suggest).exists() and not force:
        raise UsageError(f"--suggest {suggest} exists already", "choose another file, or --force to replace it")


def _check_page(html: Path | None, structure: bool, inputs: tuple[Path | str | None, ...]) -> None:
    """Refuse a page that can't be written, or that would show nothing.

    Raises:
        UsageError: It is.
    """
    from compresskit.cli.console import check_html
    from compresskit.errors import UsageError

    check_html(html, inputs)
    if html is not None and not structure:
        raise UsageError("--html is for --structure: the page shows what the model does on samples", "add --structure")


def _with_data(
    loaded: Model, data: str | None, normalize: str | None, sequence: int, asked: dict[str, bool]
) -> tuple[Model, Source | None]:
    """The model with its inputs known, if the data tell; and the data.

    Args:
        loaded: As it was read.
        data: As typed.
        normalize: As typed.
        sequence: Most tokens of a sample.
        asked: The options that run the model on samples, and whether they are given.

    Raises:
        UsageError: The data are missing, or of no use.
    """
    from compresskit.errors import UsageError
    from compresskit.runner.prepare import with_inputs
    from compresskit.runner.sources import opener

    for option in (name for name, given in asked.items() if given):
        if isinstance(loaded.body, Path):
            raise UsageError(f"{option} needs a module: {_WHY[option]}", "give --arch FILE.py:NAME")
        if data is None:
            raise UsageError(f"{option} needs samples to run the model on", "give --data FILE; labels aren't read")
    if data is not None and not any(asked.values()) and (loaded.card.inputs or isinstance(loaded.body, Path)):
        raise UsageError(
            "--data is for --sensitivity and --structure, or for an input whose shape isn't known", "add --structure"
        )
    source = opener(loaded, normalize, sequence, paths=[data])(data)
    return (loaded if source is None else with_inputs(loaded, source)), source


def _data_words(data: str | None, normalize: str | None) -> list[str]:
    """The samples and how they are prepared, as typed."""
    given = {"--data": data, "--normalize": normalize}
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def _words(model: Path, arch: str | None, arch_args: str | None, input_shape: str | None, key: str | None) -> list[str]:
    """MODEL and what tells its architecture, as typed."""
    given = {"--arch": arch, "--arch-args": arch_args, "--input-shape": input_shape, "--key": key}
    return [str(model), *(word for name, value in given.items() if value is not None for word in (name, value))]


def _write_suggestion(suggest: str | None, recipe: str, found: dict[str, Any], force: bool) -> None:
    """Put the recipe where ``--suggest`` says.

    Raises:
        InputError: There is nothing to suggest.
    """
    from compresskit.checkpoint.atomic import write_file
    from compresskit.errors import InputError

    if suggest is None:
        return
    sizes = found["estimates"]["quantize"]
    if not sizes["forms"]:
        raise InputError(f"there is no recipe to suggest: {sizes['reason']}")
    if suggest != "-":
        write_file(Path(suggest), lambda path: path.write_text(recipe, encoding="utf-8", newline="\n"), force=force)
