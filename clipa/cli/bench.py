"""`clipa bench`: benchmarks, each a program of its own that prints a table for docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipa.cli import words
from clipa.cli.relay import run_module

app = typer.Typer(
    help="Benchmarks.",
    epilog="Example: clipa bench stage s3://bucket/shards",
    no_args_is_help=True,
    rich_markup_mode=None,
)


Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe's name or file; default: clipa-l16-i37-t8 on a GPU, scaling-s16 on a CPU.",
        autocompletion=words.complete_recipe,
        show_default=False,
    ),
]
WriteCalibration = Annotated[
    bool | None,
    typer.Option(
        "--write-calibration/--no-write-calibration", help="For clipa plan; default: on GPUs.", show_default=False
    ),
]


@app.callback()
def _group() -> None:
    """Benchmarks."""


@app.command(epilog="Example: clipa bench stage s3://bucket/shards --endpoint http://127.0.0.1:7480")
def stage(
    url: Annotated[str, typer.Argument(help="s3://bucket/folder with shards.")],
    endpoint: Annotated[str, typer.Option("--endpoint", help="Of a store other than AWS.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 3,
    core: Annotated[str, typer.Option("--core", help="Pin the tools to these cores, away from a server here.")] = "",
) -> None:
    """CPU and wall time of staging, verified and not, beside the other tools that are installed here."""
    given = {"--endpoint": endpoint, "--core": core, "--rounds": str(rounds)}
    run_module("clipa.bench.stage", url, *(word for name, value in given.items() if value for word in (name, value)))


@app.command(epilog="Example: clipa bench submit --cluster slurm-dev")
def submit(
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe's name or file.")] = "demo",
    cluster: Annotated[str, typer.Option("--cluster", "-c", help="A profile of SLURM.")] = "slurm-dev",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 8,
) -> None:
    """Submitting a pipeline to SLURM, beside a bare sbatch of the same scripts."""
    run_module("clipa.bench.submit", "--recipe", recipe, "--cluster", cluster, "--rounds", str(rounds))


@app.command(epilog="Example: clipa bench data clipa-l16-i37-t8 --data /scratch/laion")
def data(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.", autocompletion=words.complete_recipe)],
    phase: Annotated[str, typer.Option("--phase", help="All that train if not given.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    shards: Annotated[str, typer.Option("--data", help="A folder of shards; made ones if not given.")] = "",
    size: Annotated[list[int] | None, typer.Option("--size", help="Pixels instead of the phases' own.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 3,
    pillow: Annotated[str, typer.Option("--pillow", help="A folder with another Pillow, such as pillow-simd.")] = "",
    gpu: Annotated[str, typer.Option("--gpu", help="Model whose appetite is to be fed.")] = "H100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many of them.")] = 8,
    mfu: Annotated[float, typer.Option("--mfu", help="The share of their peak that is assumed.")] = 0.4,
) -> None:
    """What the loader costs a core, by stage, beside open_clip's stages; and the cores that the GPUs need."""
    given = {"--phase": phase, "--data": shards, "--rounds": rounds, "--pillow": pillow, "--gpu": gpu, "--gpus": gpus,
             "--mfu": mfu}  # fmt: skip
    argv = [f"{name}={value}" for name, value in given.items() if value]
    argv += [f"--set={change}" for change in set_ or []] + [f"--size={side}" for side in size or []]
    run_module("clipa.bench.data", *argv, "--", recipe, what="measuring the loader")


@app.command(epilog="Example: clipa bench train --vs open_clip")
def train(
    recipe: Recipe = "",
    phase: Annotated[str, typer.Option("--phase", help="Default: the first that trains.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    vs: Annotated[str, typer.Option("--vs", help="open_clip: measure its step beside ours, turn about.")] = "",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[
        int, typer.Option("--batch", help="Samples a step; default: the recipe's on one of 8 GPUs, 32 on a CPU.")
    ] = 0,
    data: Annotated[
        str, typer.Option("--data", help="synthetic, a folder of shards, or a dataset's name in clipa.toml.")
    ] = "synthetic",
    workers: Annotated[int, typer.Option("--workers", help="Of the loader with --data; default: cores but one.")] = 0,
    minutes: Annotated[
        float, typer.Option("--minutes", help="Of windows for a case (0.5); with --all of everything (8).")
    ] = 0.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps a window; default: as many as last a second.")] = 0,
    peak_tflops: Annotated[
        float, typer.Option("--peak-tflops", help="The device's dense bf16 peak, in 1e12 FLOP/s.")
    ] = 0.0,
    cores: Annotated[int, typer.Option("--cores", help="Of a node of 8 GPUs, for the projection (128).")] = 0,
    all_: Annotated[
        bool, typer.Option("--all", help="B/16 and L/16 beside open_clip, fine-tunes, the pipelines' days: 8 minutes.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record some steps instead: a Chrome trace, and tables.")
    ] = False,
    to: Annotated[Path, typer.Option("--to", help="Folder of what --profile writes.")] = Path("bench-train"),
    write_calibration: WriteCalibration = None,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """The training step: images/s, TFLOP/s, MFU, memory, waiting for data; beside open_clip's with --vs."""
    given = {"--phase": phase, "--vs": vs, "--device": device, "--batch": batch, "--data": data, "--workers": workers,
             "--minutes": minutes, "--steps": steps, "--peak-tflops": peak_tflops, "--cores": cores,
             "--to": to}  # fmt: skip
    argv = [f"{name}={value}" for name, value in given.items() if value]
    argv += [f"--set={change}" for change in set_ or []]
    argv += [name for name, wanted in (("--all", all_), ("--profile", profile), ("--json", json)) if wanted]
    if write_calibration is not None:
        argv.append("--write-calibration" if write_calibration else "--no-write-calibration")
    argv.append(f"--calibrations={words.run_root()}")
    named = ["--", recipe] if recipe else []
    run_module("clipa.bench.train", *argv, *named, what="measuring the training step")
