"""The command line: verbs over the public functions, no logic of their own.

Exit status: 0 done, 2 bad usage or bad input, 130 interrupted (state saved), 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart import heap
from headstart.compression import command as smaller
from headstart.errors import HeadstartError, SpecError
from headstart.explanation import command as reasons
from headstart.registry import command as registry
from headstart.serve import command

app = typer.Typer(
    help="Transfer learning from labelled data and a pretrained model to a proven model and its evidence.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="the last line of standard output is one JSON object or list")]
Train = Annotated[
    str | None, typer.Argument(help="csv, tsv, jsonl, parquet, Arrow data set, or folder of images or sounds")
]
Test = Annotated[str | None, typer.Option(help="labelled rows to report on")]
Validation = Annotated[str | None, typer.Option(help="labelled rows to choose on; split off when left out")]
Task = Annotated[str | None, typer.Option(help="classification, multilabel or regression; inferred when left out")]
OneTask = Annotated[str | None, typer.Option("--task", help="of a model with several tasks, this one")]
Unlabelled = Annotated[str | None, typer.Option(help="rows without labels, for methods that learn from them")]
Text = Annotated[str | None, typer.Option(help="the text column")]
Image = Annotated[str | None, typer.Option(help="the image column")]
Audio = Annotated[str | None, typer.Option(help="the column of sounds")]
Label = Annotated[list[str] | None, typer.Option(help="the label column; repeat it for several targets")]
Backbone = Annotated[str | None, typer.Option(help="hf:..., timm:..., file:... or pkg:...; see 'headstart backbones'")]
Methods = Annotated[list[str] | None, typer.Option("--method", help="name[:key=value,...]; repeat to combine")]
Epochs = Annotated[int | None, typer.Option(help="passes over the training rows")]
BatchSize = Annotated[int | None, typer.Option(help="rows a micro-batch")]
Rate = Annotated[float | None, typer.Option(help="the highest learning rate")]
Limit = Annotated[str | None, typer.Option(help="such as 90s, 10m or 1.5h")]
Seed = Annotated[int | None, typer.Option(help="every random draw comes from it")]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="a TOML spec, or a bundle whose run to repeat")]
Views = Annotated[int, typer.Option("--tta", help="views of each row to average, the first is the row; 1 is off")]
Answered = Annotated[str, typer.Option("--precision", help="auto (of many rows, as measured), fp32 or bf16")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="section.key=value over the spec; repeat it")]


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """Flags in the form that `make_spec` takes: dotted keys, labels as one name or several."""
    label = options.pop("label", None)
    options["data__label"] = None if not label else label[0] if len(label) == 1 else tuple(label)
    return options


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str), flush=True)


@app.command()
def fit(
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    unlabelled: Unlabelled = None,
    task: Task = None,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    label: Label = None,
    backbone: Backbone = None,
    method: Methods = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    time_limit: Limit = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(help="the bundle's folder; runs/NAME of the training file when left out")
    ] = None,
    spec: SpecFile = None,
    set_: Sets = None,
    on_bad_row: Annotated[str | None, typer.Option(help="error or skip")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run that was cut off in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what --out holds")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    track: Annotated[str | None, typer.Option(help="mlflow:URI, tensorboard or none")] = None,
    as_json: Json = False,
) -> None:
    """Adapt a pretrained backbone to labelled rows; write a bundle with its report."""
    from headstart import adapt
    from headstart.terminal import Terminal

    terminal = Terminal()
    single = label[0] if label and len(label) == 1 else label
    sets = [*(set_ or []), *([f"data.on_bad_row={on_bad_row}"] if on_bad_row else [])]
    if dry_run:
        asked = _asked(
            {
                "data__validation": validation, "data__test": test, "data__unlabelled": unlabelled,
                "data__text": text, "data__image": image, "data__audio": audio, "label": label, "task__name": task,
                "backbone__ref": backbone, "training__epochs": epochs, "training__batch_size": batch_size,
                "training__learning_rate": learning_rate, "training__time_limit": time_limit, "training__seed": seed,
            }
        )  # fmt: skip
        made = adapt.prepare(adapt.make_spec(train, spec=spec, methods=method, sets=sets, **asked)).plan()
        terminal.say(str(made))
        if as_json:
            _print_json(made.to_json())
        return
    folder = out or _default_out(train, spec, resume)
    try:
        model = adapt.fit(
            train, validation=validation, test=test, unlabelled=unlabelled, task=task, text=text, image=image,
            audio=audio, label=single, backbone=backbone, methods=method, epochs=epochs, batch_size=batch_size,
            learning_rate=learning_rate, time_limit=time_limit, seed=seed, out=folder, spec=spec, sets=sets,
            resume=resume, overwrite=overwrite, track=track, listen=terminal,
        )  # fmt: skip
    finally:
        terminal.close()
    if model.report is not None:
        terminal.say(str(model.report))
        terminal.say(f"done: the bundle is in '{folder}', its report in '{folder / 'report.html'}'")
        if as_json:
            _print_json(model.report.to_json())


def _default_out(train: str | None, spec: Path | None, resume: bool) -> Path:
    if resume:
        raise SpecError("--resume needs --out, the folder of the run that was cut off")
    name = Path(train).stem if train else spec.stem if spec else "fit"
    return Path("runs") / (name or "fit")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    rows: Annotated[str, typer.Argument(help="rows to answer, in any format that fit reads")],
    out: Annotated[Path, typer.Option(help=".csv, .tsv, .jsonl or .parquet; for a folder of such files a folder")],
    task: OneTask = None,
    tta: Views = 1,
    precision: Answered = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="go on with a folder that was cut off")] = False,
    engine: Annotated[str, typer.Option(help="for a folder: local, or ray for several files at a time")] = "local",
    as_json: Json = False,
) -> None:
    """Answer every row of a file, or of each file of a folder: its columns, `prediction`, one score column a label."""
    from headstart import verbs
    from headstart.terminal import Terminal

    terminal = Terminal()
    count = verbs.predict(
        bundle, rows, out, task=task, tta=tta, precision=precision, resume=resume, engine=engine, tell=terminal.say
    )
    terminal.say(f"done: {count} rows answered in '{out}'")
    if as_json:
        _print_json({"rows": count, "out": str(out)})


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    rows: Annotated[str, typer.Argument(help="labelled rows, in any format that fit reads")],
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="a column; each value is measured by itself")
    ] = None,
    on_bad_row: Annotated[str, typer.Option(help="error or skip")] = "error",
    task: OneTask = None,
    robust: Annotated[bool, typer.Option("--robust", help="measure attacked and spoiled rows too")] = False,
    robust_rows: Annotated[int, typer.Option(min=1, help="rows that are attacked at most")] = 300,
    radius: Annotated[list[float] | None, typer.Option(min=0.0, help="of an attack, instead of the usual two")] = None,
    tta: Views = 1,
    precision: Answered = "auto",
    as_json: Json = False,
) -> None:
    """Measure a bundle on labelled rows, with intervals, by slice and under attack."""
    from headstart import verbs
    from headstart.terminal import Terminal

    terminal = Terminal()
    measured = verbs.evaluate(
        bundle, rows, task=task, slices=slice_ or (), on_bad_row=on_bad_row, robust=robust, robust_rows=robust_rows,
        radii=radius or None, tta=tta, precision=precision,
    )  # fmt: skip
    terminal.say(f"{measured['task']} on {measured['rows']} rows (value [95 % interval])")
    for name, text in verbs.summary_table(measured["metrics"]):
        terminal.say(f"  {name:18s} {text}")
    for column, values in measured.get("slices", {}).items():
        terminal.say(f"by {column}:")
        for line in verbs.slice_lines(values):
            terminal.say(f"  {line}")
    if robust:
        terminal.say(f"{measured['robustness']['metric']} on {measured['robustness']['rows']} rows:")
        for line in verbs.robust_lines(measured["robustness"]):
            terminal.say(f"  {line}")
    if as_json:
        _print_json(measured)


app.command()(reasons.explain)
app.command()(smaller.export)
app.command()(smaller.compress)


@app.command()
def lighten(
    bundle: Annotated[Path, typer.Argument(help="a folder that 'fit' wrote")],
    out: Annotated[Path, typer.Option(help="the new bundle's folder")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what --out holds")] = False,
    as_json: Json = False,
) -> None:
    """Write a bundle without its backbone's weights, which are loaded from where they came."""
    from headstart.bundle.light import lighten as run_lighten

    made = run_lighten(bundle, out, overwrite=overwrite)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (bundle, out)]
    print(f"{sizes[0] / 1e6:.1f} MB of weights before, {sizes[1] / 1e6:.1f} after; the rest is that of "
          f"'{made.record['backbone']['ref']}'")  # fmt: skip
    print(f"done: the bundle is in '{out}'")
    if as_json:
        _print_json({"folder": out, "bytes": sizes, "backbone": made.record["backbone"]["ref"]})


@app.command()
def compare(
    train: Train = None,
    validation: Validation = None,
    test: Test = None,
    unlabelled: Unlabelled = None,
    task: Task = None,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    label: Label = None,
    backbone: Backbone = None,
    method: Methods = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    against: Annotated[
        list[str] | None, typer.Option(help="scratch, probe, finetune, methods as a+b:k=v, or a spec's file; repeat")
    ] = None,
    baseline: Annotated[str, typer.Option(help="the arm that the others are compared with")] = "recipe",
    labels: Annotated[str, typer.Option(help="label budgets: shares (10%) or rows a class (8), with commas")] = "100%",
    seeds: Annotated[int, typer.Option(help="fits per arm and budget")] = 1,
    folds: Annotated[int | None, typer.Option(help="cross-validation instead of test rows")] = None,
    spec: SpecFile = None,
    set_: Sets = None,
    out: Annotated[Path, typer.Option(help="folder for compare.json and compare.html")] = Path("runs/compare"),
    resume: Annotated[bool, typer.Option("--resume", help="fits that --out holds already are not repeated")] = False,
    as_json: Json = False,
) -> None:
    """Which way of learning to use: methods or specs on the same rows, seeds and folds, at several label budgets."""
    from headstart import comparison
    from headstart.terminal import Terminal

    terminal = Terminal()
    asked = _asked(
        {
            "data__validation": validation, "data__test": test, "data__unlabelled": unlabelled,
            "data__text": text, "data__image": image, "data__audio": audio, "label": label, "task__name": task,
            "backbone__ref": backbone, "training__epochs": epochs, "training__batch_size": batch_size,
            "training__learning_rate": learning_rate, "training__seed": seed,
        }
    )  # fmt: skip
    found = comparison.compare(
        train, against=against or ("scratch", "probe"), labels=[b for b in labels.split(",") if b], seeds=seeds,
        baseline=baseline, folds=folds, resume=resume, spec=spec, methods=method, sets=set_ or (), out=out,
        listen=terminal, **asked,
    )  # fmt: skip
    for line in comparison.lines(found):
        terminal.say(line)
    terminal.say(f"done: the comparison is in '{out / 'compare.html'}'")
    if as_json:
        _print_json(found.to_json())


def _listing(entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(entries)
        return
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry['name']:{width}s}  {entry['summary']}  [{entry['source']}]")


@app.command()
def backbones(as_json: Json = False) -> None:
    """List where pretrained backbones come from, and those that are installed."""
    from headstart.backbones import known

    _listing([dict(entry) for entry in known()], as_json)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="explain this one: equation, source, options, pairs, figures")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the transfer methods, or explain one of them."""
    from headstart.catalog import entries

    if name is not None:
        from headstart.manual import describe, lines

        found = describe(name)
        if as_json:
            _print_json(found)
        else:
            print("\n".join(lines(found)))
        return
    _listing([entry.to_json() for entry in entries("methods").values()], as_json)


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks."""
    from headstart.catalog import entries

    _listing([entry.to_json() for entry in entries("tasks").values()], as_json)


for verb in (registry.register, registry.models, registry.promote, registry.rollback, registry.remove):
    app.command()(verb)
app.command()(command.serve)
app.command()(command.key)


def _version(wanted: bool) -> None:
    if wanted:
        from headstart import __version__

        print(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show it and stop")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    heap.wait_briefly()
    # A server lives long and frees on many threads, whose heaps would each keep as much.
    if (sys.argv[1:] if arguments is None else arguments)[:1] != ["serve"]:
        heap.settle()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; every failure is one sentence on standard error and an exit status."""
    # torch says this of its own threads on a GPU, once a process, and then does the right thing.
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
    try:
        result = app(args=arguments, standalone_mode=False, prog_name="headstart")
        return result if isinstance(result, int) else 0
    except HeadstartError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        # The command line's own usage errors know their text and their exit status.
        if hasattr(error, "format_message"):
            return _fail(f"{error.format_message()} (see 'headstart --help')", int(getattr(error, "exit_code", 2)))
        if os.environ.get("HEADSTART_DEBUG"):
            raise
        return _fail(f"{type(error).__name__}: {error} (set HEADSTART_DEBUG=1 for the traceback)", 1)


def _fail(text: str, status: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    main()
