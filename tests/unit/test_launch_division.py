import msgspec
import pytest

from clipa.errors import ConfigError
from clipa.launch.division import enough, fitting, read_by_each
from clipa.spec.cluster import Dataset
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import Optim, Portion, Pretrain, TrainPhase
from clipa.spec.plan import Data, World

PHASE = Pretrain(data="d", samples=480, batch=32, image=ImageInput(size=8), text=TextInput(tokens=8),
                 optim=Optim(lr=1e-3))  # fmt: skip
CURE = "lanes = 4 makes it 1/4, and changes the order of the samples"


def phase(lanes: int, batch: int = 32) -> TrainPhase:
    return msgspec.structs.replace(PHASE, lanes=lanes, batch=batch)


def data(access: str, name: str = "laion") -> Data:
    return Data(name=name, source=Dataset(url="s3://b/x"), manifest="m", shards=1, bytes=1, access=access)


@pytest.mark.parametrize(("lanes", "nodes"), [(1, 1), (1, 4), (4, 4), (8, 4), (2, 4), (32, 2), (16, 1)])
def test_lanes_that_nodes_share_or_divide(lanes: int, nodes: int) -> None:
    world = World(processes=2 * nodes, nodes=nodes)
    assert fitting(world, phase(lanes), "r: phases.pretrain") is world


@pytest.mark.parametrize(
    ("lanes", "nodes", "batch", "allowed"),
    [
        (8, 6, 48, "6 or 12 lanes, or a number of nodes that divides 8"),
        (48, 5, 240, "40 or 60 lanes, or a number of nodes that divides 48"),
        (2, 3, 36, "1 or 3 lanes, or a number of nodes that divides 2"),
    ],
)
def test_lanes_that_do_not_fit_the_nodes(lanes: int, nodes: int, batch: int, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fitting(World(processes=nodes, nodes=nodes), phase(lanes, batch), "r: phases.pretrain")
    assert str(caught.value.where) == "r: phases.pretrain.lanes"
    assert caught.value.what == f"{lanes} lanes cannot be divided among {nodes} nodes"
    assert caught.value.allowed == allowed


@pytest.mark.parametrize(
    ("lanes", "nodes", "access", "said"),
    [
        (1, 4, "stream", f"each of 4 nodes reads all of laion; {CURE}"),
        (2, 4, "stream", f"each of 4 nodes reads 1/2 of laion; {CURE}"),
        (4, 4, "stream", ""),
        (1, 1, "stream", ""),
        (1, 4, "stage", ""),
    ],
)  # fmt: skip
def test_what_each_node_reads(lanes: int, nodes: int, access: str, said: str) -> None:
    assert read_by_each([data(access)], phase(lanes), World(processes=nodes, nodes=nodes)) == said


def test_lanes_of_a_recipe_divide_its_batch() -> None:
    for lanes, said in (
        (3, r"batch 32 is not divisible by 3 lanes \(nearest: 2 or 4 lanes, or a batch of 30 or 33\)"),
        (0, "lanes must be 1 to 32"),
        (33, "lanes must be 1 to 32"),
    ):
        with pytest.raises(ValueError, match=said):
            msgspec.convert({**msgspec.to_builtins(PHASE), "lanes": lanes}, Pretrain)


def test_a_dataset_without_a_sample_is_refused_and_a_small_one_remarked_on() -> None:
    def has(samples: int | None, name: str = "laion") -> Data:
        return msgspec.structs.replace(data("stage", name), samples=samples)

    assert [enough([has(samples)], phase(1), "r: p") for samples in (None, 32)] == ["", ""]
    said = "laion has 31 samples, of which a batch takes 32: some come twice in it"
    assert enough([has(31)], phase(1), "r: p") == said
    two = msgspec.structs.replace(PHASE, data=(Portion(name="a", weight=3), Portion(name="b", weight=1)))
    assert enough([has(24, "a"), has(8, "b")], two, "r: p") == ""
    assert enough([has(24, "a"), has(7, "b")], two, "r: p").startswith("b has 7 samples, of which a batch takes 8")
    with pytest.raises(ConfigError, match="laion has no sample with an image and a caption"):
        enough([has(0)], phase(1), "r: p")
