"""Who is told of a run: the profile goes before the project, and what cannot work is refused before anything starts."""

from pathlib import Path

import pytest

from clipa.errors import ConfigError, MissingPart
from clipa.host.telling import require_installed
from clipa.launch.request import settle
from clipa.spec import trackers
from clipa.spec.trackers import TRACKERS, Known


def _settled(tmp_path, monkeypatch, project, profile):
    (tmp_path / "clipa.toml").write_text(project)
    (tmp_path / "here.toml").write_text(f"gpus = 0\n{profile}")
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(TRACKERS, name, TRACKERS[name]._replace(package="msgspec"))  # as if it were installed
    return settle("pretrain", "demo", "./here.toml", (), None, "", runs=lambda: None).request.trackers


@pytest.mark.parametrize(("project", "profile", "told"), [
    ("", "", ("tensorboard",)),
    ('trackers = ["wandb"]', "", ("wandb",)),
    ('trackers = ["wandb"]', 'trackers = ["mlflow", "tensorboard"]', ("mlflow", "tensorboard")),
    ('trackers = ["wandb"]', "trackers = []", ()),
])  # fmt: skip
def test_the_profile_goes_before_the_project(tmp_path, monkeypatch, project, profile, told):
    assert _settled(tmp_path, monkeypatch, project, profile) == told


@pytest.mark.parametrize(("project", "profile"), [('trackers = ["tensorbord"]', ""), ("", 'trackers = ["tensorbord"]')])
def test_an_unknown_one_is_refused_with_those_that_there_are(tmp_path, monkeypatch, project, profile):
    with pytest.raises(ConfigError, match=r'(?s)of tensorboard, wandb, trackio, mlflow.*did you mean "tensorboard"'):
        _settled(tmp_path, monkeypatch, project, profile)


def test_one_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    require_installed(("tensorboard",), "here")
    monkeypatch.setitem(TRACKERS, "wandb", Known("m", "d", package="no_such_package"))
    with pytest.raises(MissingPart, match=r"pip install 'clipa\[wandb\]'") as caught:
        require_installed(("tensorboard", "wandb"), "here")
    assert caught.value.exit_code == 2


def test_every_tracker_has_its_file_and_its_extra():
    root = Path(trackers.__file__).parents[2]
    for name, known in TRACKERS.items():
        assert f"class {known.door}:" in (root / f"{known.module.replace('.', '/')}.py").read_text()
        assert not known.package or f'\n{name} = ["{known.package}' in (root / "pyproject.toml").read_text()
