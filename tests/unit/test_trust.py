"""Whose files may decide what is executed."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from clipa.errors import ConfigError
from clipa.spec import catalog
from clipa.spec.trust import distrust, distrust_in_place, distrust_of_tree

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder two levels below the one that holds the project file."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    file = tmp_path / "a" / "clipa.toml"
    file.write_text('cluster = "./theirs.toml"\n')
    (tmp_path / "a" / "theirs.toml").write_text('[slurm]\ntime = 5\nsetup = ["evil"]\n')
    for path in (tmp_path / "a", file, tmp_path / "a" / "theirs.toml"):
        path.chmod(0o755)
    return file


def refused(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        catalog.defaults(file.parent / "b" / "c")
    assert "trusted" in caught.value.hint
    return caught.value.what


def test_a_project_file_of_ones_own_is_used(project: Path) -> None:
    assert catalog.defaults(project.parent / "b" / "c").cluster == str(project.parent / "theirs.toml")


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o666])
def test_a_project_file_that_others_can_write_is_refused(project: Path, mode: int) -> None:
    project.chmod(mode)
    assert "others can write to it" in refused(project)


def test_a_project_file_in_a_folder_that_others_can_write_is_refused(project: Path) -> None:
    project.parent.chmod(0o777)
    assert f"others can write to its folder {project.parent}" in refused(project)


def test_ones_own_project_file_in_a_sticky_folder_is_used(project: Path) -> None:
    project.parent.chmod(0o1777)
    assert catalog.defaults(project.parent).cluster_from == str(project)


@as_root
@pytest.mark.parametrize("folder", [0o755, 0o1777])
@pytest.mark.parametrize("stranger", ["clipa.toml", "theirs.toml"])
def test_a_strangers_file_is_refused_whatever_the_folder(project: Path, folder: int, stranger: str) -> None:
    os.chown(project.parent / stranger, STRANGER, STRANGER)
    project.parent.chmod(folder)
    assert "belongs to user nobody" in refused(project)


@as_root
def test_a_strangers_folder_and_a_strangers_link_are_refused(project: Path) -> None:
    link = project.parent / "b" / "clipa.toml"
    link.symlink_to(project)
    os.lchown(link, STRANGER, STRANGER)
    assert "belongs to user nobody" in distrust(link)
    link.unlink()
    os.chown(project.parent, STRANGER, STRANGER)
    assert "its folder" in refused(project)


def test_a_folder_that_the_user_names_is_trusted(project: Path, home: Path) -> None:
    project.parent.chmod(0o777)
    config = home / ".config" / "clipa" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'trusted = ["{project.parent}"]\n')
    assert catalog.defaults(project.parent).cluster_from == str(project)
    config.chmod(0o666)
    with pytest.raises(ConfigError, match="config file was found, but it is not used"):
        catalog.defaults(project.parent)


def test_a_project_file_cannot_trust_itself(project: Path) -> None:
    project.write_text('trusted = ["/"]\n')
    with pytest.raises(ConfigError, match="your own config file"):
        catalog.defaults(project.parent)


@pytest.mark.parametrize(
    ("group", "members", "open_to_others"),
    [("me", [], False), ("me", ["me"], False), ("me", ["you"], True), ("users", [], True)],
)
def test_a_group_of_ones_own_is_no_others(
    tmp_path: Path, group: str, members: list[str], open_to_others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = pwd.struct_passwd(("me", "x", os.getuid(), 7, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((group, "x", gid, members)))
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o664)
    assert bool(distrust(file)) is open_to_others
    assert bool(distrust_of_tree(tmp_path)) is open_to_others


def test_what_is_not_there_is_not_trusted(tmp_path: Path) -> None:
    assert "cannot be read" in distrust_in_place(tmp_path / "absent")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "cannot be read" in distrust(tmp_path / "dangling")
