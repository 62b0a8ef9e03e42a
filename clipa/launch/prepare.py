"""From what the user typed to plans: everything that can be checked before queueing is checked here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.errors import ConfigError, did_you_mean
from clipa.host import devices
from clipa.launch import demo, division, pin, weights
from clipa.launch.evaluation import pin_sets
from clipa.launch.stage_job import with_stage
from clipa.registry import provenance
from clipa.registry.reading import readable
from clipa.spec import budget, catalog, cost, hardware, training_part
from clipa.spec.cluster import Cluster, Dataset
from clipa.spec.evalset import EvalSet
from clipa.spec.job import Eval, Phase, Recipe
from clipa.spec.leave import leave
from clipa.spec.load import LoadedRecipe, anchored
from clipa.spec.plan import Data, EvalData, Limits, Plan, Weights, World
from clipa.spec.slurm import Slurm
from clipa.storage.access import choose, starts
from clipa.storage.dataset import index
from clipa.storage.manifest import Manifest
from clipa.storage.pattern import require_no_secret
from clipa.storage.vocabulary import find_vocabulary


class Prepared(NamedTuple):
    """Plans in the order of their phases, the manifests that they pin (by digest), and remarks for people."""

    plans: tuple[Plan, ...]
    manifests: dict[str, Manifest]
    notes: tuple[str, ...] = ()


class Request(NamedTuple):
    """What the user asked for, with every default settled."""

    recipe: LoadedRecipe
    cluster: Cluster
    phases: tuple[str, ...]
    name: str
    init: Weights | None
    run_root: Path
    cache: Path
    datasets: dict[str, Dataset]
    build: bool = False
    trackers: tuple[str, ...] = ()
    say: pin.Say = pin.silent


def prepare(request: Request) -> Prepared:
    """Make the plans of a submission.

    Raises:
        InputError: anything that the user can mend, before anything was queued.
        StorageError: the store does not answer.
    """
    recipe, cluster = request.recipe.recipe, request.cluster
    pinned = pin.pin(cluster, request.run_root, request.cache, request.say, request.build)
    if pinned is None and cluster.slurm is None:
        # A login node needs no torch and no vocabulary, and the image has both.
        _require_training_part(recipe, cluster)
    world = _world(cluster)
    shelf = _Shelf(request)
    created = time.time()
    group = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(created))}-{os.urandom(2).hex()}"
    plans: list[Plan] = []
    notes: list[str] = []
    init, parent = request.init, ""
    for name in request.phases:
        where = f"{request.recipe.path}: phases.{name}"
        limits, phase, note = _limits(cluster, recipe, recipe.phases[name])
        phase, passes = _in_passes(cluster, recipe, phase, world)
        mixed = shelf.mixture(phase, where)
        notes += [f"{name}: {said}" for said in (note, passes, *division.remarks(mixed, phase, world, where)) if said]
        plan = Plan(
            run=f"{group}-{name}",
            group=group,
            created=created,
            recipe=recipe.name,
            recipe_digest=request.recipe.digest,
            phase=name,
            cluster=cluster.name,
            backend=cluster.backend,
            model=recipe.model,
            settings=phase,
            world=division.fitting(world, phase, where),
            limits=limits,
            code=provenance.code(),
            run_root=str(request.run_root),
            cache=str(request.cache),
            cache_limit=int(cluster.cache_limit_gib * 2**30),
            publish=_publish(cluster),
            name=request.name,
            seed=recipe.seed,
            parent=parent,
            data=mixed[0] if mixed else None,
            mixed=mixed[1:],
            evals=shelf.eval_sets(_sets(phase), recipe.evals),
            init=init,
            steps=0 if isinstance(phase, Eval) else budget.steps_of(phase.samples, phase.batch),
            warmup_steps=0 if isinstance(phase, Eval) else phase.optim.warmup_samples // phase.batch,
            env=dict(cluster.env),
            slurm=_on_cluster(cluster.slurm),
            trackers=request.trackers,
        )
        plans.append(msgspec.structs.replace(plan, container=pin.with_data(pinned, plan)))
        if not isinstance(phase, Eval):
            init, parent = Weights(ref=f"run:{plan.run}@final", run=plan.run), plan.run
    return Prepared(readable(with_stage(plans, recipe)), shelf.manifests, (*shelf.notes, *notes))


def _on_cluster(settings: Slurm | None) -> Slurm | None:
    """Return the SLURM settings with the cluster that the user's environment names, as sbatch would take it."""
    named = os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS")
    if settings is None or not named or {"clusters", "cluster"} & {*settings.directives}:
        return settings
    return msgspec.structs.replace(settings, directives={**settings.directives, "clusters": named})


def require_usable_root(request: Request) -> None:
    """Refuse a run root that cannot be the folder of SLURM's logs.

    Raises:
        ConfigError: with the characters that sbatch would replace, or that no batch script can hold.
    """
    root = str(request.run_root)
    if request.cluster.slurm is None:
        return
    wrong = ""
    if "%" in root or "\\" in root:
        wrong = "sbatch replaces % and \\ in the names of log files"
    elif not root.isprintable():
        wrong = "a batch script cannot hold this name (a line break, a control character, or bytes that are not UTF-8)"
    if wrong:
        raise ConfigError(f"this run root cannot be used with SLURM: {wrong}", where=root,
                          hint="CLIPA_RUN_ROOT=FOLDER, or run_root in the profile")  # fmt: skip


def _limits(cluster: Cluster, recipe: Recipe, phase: Phase) -> tuple[Limits, Phase, str]:
    """The limits of a phase, the phase with checkpoints as often as these demand, and a remark on that."""
    if cluster.slurm is None:
        limits = Limits(
            max_attempts=cluster.max_attempts,
            time_limit_minutes=cluster.local_minutes,
            hang_minutes=cluster.hang_minutes,
        )
        return limits, phase, ""
    counted = budget.phase_budget(recipe.model, phase)
    times = leave(
        counted.params if counted else 0, cluster.slurm.write_mb_s, cluster.slurm.minutes, cluster.slurm.grace_s
    )
    limits = Limits(
        max_attempts=cluster.max_attempts,
        time_limit_minutes=cluster.slurm.minutes,
        total_minutes=round(60 * cluster.slurm.total_hours),
        lead_s=times.lead_s,
        leave_s=times.leave_s,
        hang_minutes=cluster.hang_minutes,
    )
    if times.every_minutes is None or isinstance(phase, Eval):
        return limits, phase, ""
    every = min(phase.checkpoint.every_minutes, times.every_minutes)
    checkpoint = msgspec.structs.replace(phase.checkpoint, every_minutes=every)
    return limits, msgspec.structs.replace(phase, checkpoint=checkpoint), times.note


def _in_passes(cluster: Cluster, recipe: Recipe, phase: Phase, world: World) -> tuple[Phase, str]:
    """The phase as it fits into the memory of its GPUs, where the recipe leaves that open, and a remark.

    The GPU is the profile's `gpu_model`, else the first one that is here; without one the whole share passes at once,
    and nothing is recomputed.
    """
    if isinstance(phase, Eval) or phase.batch % world.processes or (phase.micro_batch and phase.recompute != "auto"):
        return phase, ""
    plain = msgspec.structs.replace(phase, recompute=phase.recomputed)
    if not world.gpus:
        return plain, ""
    gpu = hardware.gpu_of(cluster)
    if gpu is None and cluster.slurm is None:
        here = devices.gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        gpu = hardware.gpu_named(here[0].name) if here else None
    if gpu is None:
        what = "nothing is recomputed" if phase.micro_batch else "one pass for all samples of a GPU"
        return plain, f"{what}: its memory is not known (gpu_model of the cluster profile)"
    local = phase.batch // world.processes
    found = cost.in_memory(recipe.model, phase, gpu, world.gpus)
    micro = found.micro_batch
    passes = f"{-(-local // micro)} passes of {micro:,}" if micro < local else "one pass"
    again = f", {found.recomputed:.0%} of the blocks recomputed" if found.recomputed else ""
    held = cost.memory_bytes(recipe.model, found, budget.train_budget(recipe.model, found), world.gpus, micro)
    more = "" if held <= cost.FILL * gpu.memory_gb * 1e9 else ': too much, take more GPUs or parallel = "fsdp"'
    memory = f"about {held / 1e9:.0f} of {gpu.memory_gb:g} GB ({gpu.model}){more}"
    return found, f"{passes} for the {local:,} samples of a GPU{again}, {memory}"


def select_phases(recipe: Recipe, what: str, where: str) -> tuple[str, ...]:
    """The recipe's phases for `pretrain`, `finetune`, `eval` or `pipeline` (all).

    Raises:
        ConfigError: the recipe has none of that kind.
    """
    chosen = tuple(name for name, phase in recipe.phases.items() if what in ("pipeline", kind_of(phase)))
    if not chosen:
        have = ", ".join(f"{name} ({kind_of(phase)})" for name, phase in recipe.phases.items())
        raise ConfigError(f"the recipe has no {what} phase", where=where, allowed=have, hint=f"add [phases.{what}]")
    return chosen


def kind_of(phase: Phase) -> str:
    """pretrain, finetune or eval."""
    return str(phase.__struct_config__.tag)


def needs_weights(recipe: Recipe, phases: Sequence[str]) -> bool:
    """Whether the first of these phases starts from weights that no phase before it in the list makes."""
    return kind_of(recipe.phases[phases[0]]) != "pretrain"


def check_init(request: Request) -> None:
    """Refuse starting weights of another model before anything is queued."""
    if request.init is not None:
        require_no_secret(request.init.ref, "--from")
        weights.check(request.init, request.recipe.recipe.model, request.run_root)


def _sets(phase: Phase) -> tuple[str, ...]:
    return phase.sets if isinstance(phase, Eval) else phase.evaluate.sets


def _world(cluster: Cluster) -> World:
    if cluster.slurm is not None:
        assert cluster.gpus != "auto"
        local = cluster.gpus or cluster.processes
        cores = cluster.slurm.cpus
        threads = cluster.threads or (max(1, cores // local - cluster.loader_workers) if cores else 1)
        return World(
            processes=cluster.nodes * local,
            nodes=cluster.nodes,
            gpus=cluster.nodes * cluster.gpus,
            threads=threads,
            loader_workers=cluster.loader_workers,
            gpu_tflops=cluster.gpu_tflops,
        )
    found = devices.gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if cluster.gpus != 0 else []
    wanted = devices.usable(found) if cluster.gpus == "auto" else cluster.gpus
    if len(found) >= wanted > devices.usable(found):
        raise ConfigError(
            f"the cluster profile asks for {wanted} GPUs, and NCCL cannot join MIG instances, which are here",
            where=f"cluster {cluster.name}: gpus",
            allowed='"auto", 0 or 1',
            hint="start one run for each instance: CUDA_VISIBLE_DEVICES=MIG-... clipa submit ...",
        )
    if wanted > len(found):
        raise ConfigError(
            f"the cluster profile asks for {wanted} GPUs, nvidia-smi lists {len(found)} here",
            where=f"cluster {cluster.name}: gpus",
            allowed=f'"auto" or 0..{len(found)}',
            hint="set gpus = 0 to train on the CPU",
        )
    processes = wanted or cluster.processes
    cores = len(os.sched_getaffinity(0))
    # The loader's workers need cores too: two busy threads beside a busy worker on 2 cores were measured 5x slower.
    threads = cluster.threads or max(1, cores // processes - cluster.loader_workers)
    return World(
        processes=processes,
        gpus=wanted,
        threads=threads,
        loader_workers=cluster.loader_workers,
        gpu_tflops=cluster.gpu_tflops,
    )


def _publish(cluster: Cluster) -> Dataset | None:
    if not cluster.publish:
        return None
    target = catalog.as_dataset(cluster.publish)
    require_no_secret(target.url, f"cluster {cluster.name}: publish")
    return target


def _require_training_part(recipe: Recipe, cluster: Cluster) -> None:
    training_part.require("training in this environment", sys.prefix)
    if recipe.model.text.tokenizer != "clip-bpe":
        find_vocabulary({**os.environ, **cluster.env})


class _Shelf:
    """Resolves the names of datasets to URLs, indexes each once, and keeps the manifests."""

    def __init__(self, request: Request) -> None:
        self.bound = {**request.datasets, **{k: catalog.as_dataset(v) for k, v in request.cluster.datasets.items()}}
        self.cluster = request.cluster.name
        self.beside = request.recipe.path.parent
        self.say = request.say
        self.cache_limit = int(request.cluster.cache_limit_gib * 2**30)
        self.manifests: dict[str, Manifest] = {}
        self.stages_alone = request.cluster.slurm is not None and request.cluster.slurm.stage is not None
        self.notes: dict[str, None] = {}
        self._pinned: dict[str, Data] = {}
        self._sets: dict[str, dict[str, EvalData]] = {}

    def mixture(self, phase: Phase, where: str) -> tuple[Data, ...]:
        """The datasets that a phase trains on, in the order of its portions; none for an evaluation."""
        if isinstance(phase, Eval):
            return ()
        found: list[Data] = []
        for portion in phase.portions:
            taken = sum(data.bytes for data in found if data.access == "stage")
            found.append(self._timed(self.pin(portion.name, where, taken), phase.shuffle_window))
        return tuple(found)

    def _timed(self, data: Data, window: int) -> Data:
        """A dataset that is staged, with whether training begins before all of it is there."""
        if data.access == "stream":
            return data
        start = starts(data.samples, data.shards, window, self.stages_alone)
        if start.why:
            hint = "" if start.early else f" (clipa data index {data.name} --scan)"
            self.notes[f"{data.name}: {start.why}{hint}"] = None
        return msgspec.structs.replace(data, early=start.early)

    def pin(self, word: str, where: str, taken: int = 0) -> Data:
        """The dataset of this name or URL, pinned by the digest of its manifest. `taken`: bytes of the cache that
        others of its mixture take.
        """
        if word not in self._pinned:
            source = self._resolve(word, where)
            manifest = index(source)
            self.manifests[manifest.digest] = manifest
            choice = choose(source, manifest.bytes, self.cache_limit, taken)
            if choice.access == "stream" and manifest.samples is None:
                raise ConfigError(
                    f"the dataset would be streamed ({choice.why}), and its manifest does not say how many samples "
                    "each shard has",
                    where=where,
                    allowed='access = "stage", or counted shards',
                    hint=f"clipa data index {word} --scan",
                )
            if source.access != "stage":
                how = "streamed" if choice.access == "stream" else "staged"
                self.notes[f"{word} is {how}: {choice.why}"] = None
            self._pinned[word] = Data(
                name=word,
                source=source,
                manifest=manifest.digest,
                shards=len(manifest.shards),
                bytes=manifest.bytes,
                samples=manifest.samples,
                access=choice.access,
            )
        return self._pinned[word]

    def eval_sets(self, names: Sequence[str], sets: dict[str, EvalSet]) -> dict[str, EvalData]:
        """The evaluation sets of these names, with class names and templates; a suite becomes all of its sets."""
        found: dict[str, EvalData] = {}
        for name in names:
            if name not in self._sets:
                pinned = pin_sets(name, sets[name], partial(self._resolve, where=f"evals.{name}"))
                for one in pinned.values():
                    self.manifests.update({manifest.digest: manifest for manifest in one.manifests})
                self._sets[name] = {key: one.data for key, one in pinned.items()}
            if twice := set(found) & set(self._sets[name]):
                raise ConfigError(f"two evaluation sets are called {min(twice)!r}", where=f"evals.{name}")
            found |= self._sets[name]
        return found

    def _resolve(self, word: str, where: str) -> Dataset:
        found = self._found(word, where)
        require_no_secret(found.url, where)
        return found

    def _found(self, word: str, where: str) -> Dataset:
        if word in self.bound:
            return self.bound[word]
        if word.startswith("demo://"):
            return Dataset(url=demo.bucket(word, self.say))
        if "://" in word or word.startswith(("/", "~", "./", "../")):
            return Dataset(url=anchored(word, self.beside))
        raise ConfigError(
            f"the dataset {word!r} is not bound to a URL",
            where=where,
            allowed=", ".join(self.bound) or "no dataset is bound yet; a URL is allowed too",
            hint=did_you_mean(word, self.bound)
            or f'add to clipa.toml or to the cluster profile {self.cluster}:  [datasets]  {word} = "s3://BUCKET/FOLDER"',
        )
