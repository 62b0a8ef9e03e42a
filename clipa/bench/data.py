"""What the loader costs: `clipa bench data RECIPE [--data FOLDER]`.

Images a second of one core by stage, beside open_clip's stages on the same shards; tokenisers on captions that they
have not seen; pixels against a full decode by Pillow; threads and processes; and the cores that the recipe's GPUs need.
Rates of stages are of processor time, so that a busy machine shows in them little; those of workers are of the clock.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from clipa.bench import sources, words
from clipa.bench.fidelity import fidelity
from clipa.bench.pipelines import BATCH, Job, Stages
from clipa.bench.workers import rates
from clipa.errors import ClipaError, ConfigError, DataError, InputError, told
from clipa.interpreter import module_argv
from clipa.spec.catalog import find_recipe
from clipa.spec.cost import Place, cost
from clipa.spec.hardware import gpu_named
from clipa.spec.job import Recipe, TrainPhase
from clipa.spec.load import load_recipe
from clipa.terminal import say

GOALS = {224: (2.0, 3.5), 112: (3.0, 4.0), 64: (4.5, 5.0)}
"""Times open_clip's rate on stock Pillow that is aimed at, by pixels: float out, and uint8 out."""
_MADE = 4 * BATCH


def main() -> int:
    """Print tables in Markdown."""
    options = _options()
    gc.freeze()  # as in the loader's workers
    try:
        recipe = load_recipe(find_recipe(options.recipe), options.set).recipe
        phases = _phases(recipe, options.phase)
        with _shards(options.data) as folder:
            _print_all(recipe, phases, folder, options)
    except ClipaError as error:
        return told(error)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="clipa bench data")
    parser.add_argument("recipe")
    parser.add_argument("--phase", default="")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data", default="", help="a folder of shards; made ones of 512 x 384 if not given")
    parser.add_argument("--size", type=int, action="append", default=[], help="pixels instead of the phases' own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pillow", default="", help="a folder with another Pillow, such as pillow-simd")
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--mfu", type=float, default=0.4)
    return parser.parse_args()


def _phases(recipe: Recipe, wanted: str) -> dict[str, TrainPhase]:
    found: dict[str, TrainPhase] = {
        name: phase for name, phase in recipe.phases.items() if isinstance(phase, TrainPhase)
    }
    if wanted and wanted not in found:
        raise ConfigError(f"{recipe.name} has no training phase {wanted!r}", allowed=", ".join(found) or "none")
    return {name: phase for name, phase in found.items() if wanted in ("", name)}


@contextmanager
def _shards(given: str) -> Iterator[Path]:
    if given:
        if not Path(given).is_dir():
            raise InputError("no such folder", where=given, hint="clipa data stage brings shards to one")
        yield Path(given).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="clipa-bench-") as folder:
        sources.write(Path(folder), _MADE)
        yield Path(folder)


def _print_all(recipe: Recipe, phases: dict[str, TrainPhase], folder: Path, options: argparse.Namespace) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    said = f"made pictures of 512 x 384, {size / _MADE / 1000:.0f} kB each" if not options.data else str(folder)
    say(f"{recipe.name} on {said}; load {os.getloadavg()[0]:.1f}\n")
    jobs: dict[str, Job] = {}
    for name, phase in phases.items():
        image = msgspec.structs.replace(phase.image, jitter=None)
        for side in options.size or [image.size]:
            title = f"{name}, {side} px, {phase.text.tokens} text tokens"
            jobs[title] = Job(
                folder=str(folder), image=msgspec.structs.replace(image, size=side, tokens=0, reduction="resize"),
                text=phase.text, tokenizer=recipe.model.text.tokenizer, rounds=options.rounds,
            )  # fmt: skip
    for title, job in jobs.items():
        _print_stages(title, job, options.pillow)
    _print_cores(recipe, phases, jobs, options)
    for title, job in jobs.items():
        found = fidelity(job)
        say(f"- {title}: PSNR to a full decode and Pillow's resize {found.mean:.1f} dB, lowest {found.lowest:.1f} dB")
    say()
    for line in words.compared(recipe.model.text.tokenizer, [phase.text for phase in phases.values()]):
        say(line)
    say()
    _print_workers(jobs)


_MEASURED: dict[Job, Stages] = {}
"""Ours, for the cores that are needed."""


def _print_stages(title: str, job: Job, pillow: str) -> None:
    columns = {"clipa": "", "open_clip": "", **({"open_clip, other Pillow": pillow} if pillow else {})}
    found = {name: _column(name.partition(",")[0], job, path) for name, path in columns.items()}
    _MEASURED[job] = found["clipa"]
    say(f"{title}; microseconds of one core for an image\n")
    say("| |" + "|".join((" read ", " decode ", " crop, resize ", " float ", " tokenise ", " collate ")) +
          "| images/s, float out | images/s, uint8 out |\n|---|" + "---|" * 8)  # fmt: skip
    for name, stages in found.items():
        cells = "|".join(f" {1e6 * getattr(stages, stage):.0f} " for stage in Stages.__struct_fields__)
        whole = f"{1 / stages.total(False):,.0f}" if name == "clipa" else "-"
        say(f"| {name} |{cells}| {1 / stages.total(True):,.0f} | {whole} |")
    say()
    for name, stages in found.items():
        if name == "clipa":
            continue
        like, real = (stages.total(True) / found["clipa"].total(floats) for floats in (True, False))
        goal = GOALS.get(job.image.size) if name == "open_clip" else None
        aim = f" (goals {goal[0]} and {goal[1]})" if goal else ""
        say(f"{like:.2f} times {name} like for like, {real:.2f} times as it really runs{aim}")
    say()


def _column(name: str, job: Job, path: str) -> Stages:
    more = {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))} if path else {}
    sys.stdout.flush()
    done = subprocess.run(
        module_argv("clipa.bench.pipelines", name),
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        env={**os.environ, **more, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise DataError(f"{name} could not be measured", hint="its error stands above")
    return msgspec.json.decode(done.stdout, type=Stages)


def _print_cores(
    recipe: Recipe, phases: dict[str, TrainPhase], jobs: dict[str, Job], options: argparse.Namespace
) -> None:
    gpu = gpu_named(options.gpu)
    if gpu is None:
        raise ConfigError(f"no GPU model {options.gpu!r} is known", allowed="H100, A100, ...")
    place = Place(cluster="here", gpus=options.gpus, gpu=gpu)
    costs = cost(recipe, place, {}, mfu=options.mfu).phases
    for title, job in jobs.items():
        name = title.partition(",")[0]
        rate = costs[name].rate
        if rate is None or job.image.size != phases[name].image.size:
            continue
        wanted = rate.samples_per_s * options.gpus
        cores = wanted * _MEASURED[job].total(False)
        say(
            f"- {title}: {options.gpus} x {gpu.model} at {options.mfu:.0%} of their peak take {wanted:,.0f} images/s: "
            f"{cores:,.0f} such cores"
        )
    say()


def _print_workers(jobs: dict[str, Job]) -> None:
    cores = len(os.sched_getaffinity(0))
    say("| images/s by the clock | one | " + " | ".join(f"{cores} {kind}" for kind in ("threads", "processes")) +
          " |\n|---|---|---|---|")  # fmt: skip
    for title, job in jobs.items():
        found: Sequence[float] = rates(job, cores)
        say(f"| {title} | " + " | ".join(f"{rate:,.0f}" for rate in found) + " |")


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    say(f"{time.monotonic() - began:.0f} s", err=True)
    sys.exit(code)
