"""A real Apptainer from Debian packages, without touching this machine's own libraries.

Debian 12 and 13 have none; sid has. It goes into a private Debian root (trixie, plus that package from sid), and a
wrapper of a few lines runs it there: every step is an exec, so signals and exit codes pass straight through. It may
vanish from sid again: then the tests that need it are skipped with that reason, in CI too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services.engine import CACHE, mirror

_LAST_CAPABILITY_ASKED = 24  # CAP_SYS_RESOURCE, often dropped in a sandbox: apptainer then works in a user namespace
_WRAPPER = """#!/bin/bash
# pivot_root, not chroot: a chrooted process may not make user namespaces.
bounding=$((16#$(awk '/^CapBnd/{{print $2}}' /proc/self/status)))
(( bounding >> {capability} & 1 )) || export APPTAINER_USERNS=1
exec unshare --mount --propagation private -- /bin/bash -ec '
root=$1; shift; here=$PWD
mount --rbind "$root" "$root"
for folder in proc sys dev tmp root home run var/tmp; do
    if [ -d "/$folder" ]; then mkdir -p "$root/$folder"; mount --rbind "/$folder" "$root/$folder"; fi
done
for file in etc/passwd etc/group etc/resolv.conf etc/hosts; do
    if [ -e "/$file" ]; then [ -e "$root/$file" ] || : >"$root/$file"; mount --bind "/$file" "$root/$file"; fi
done
mkdir -p "$root/.old"; cd "$root"; pivot_root . .old; cd "$here" 2>/dev/null || cd /
umount -l /.old
exec /usr/bin/apptainer "$@"' _ {root} "$@"
"""


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the front of PATH, with `apptainer` in it."""
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("a private Debian root for apptainer needs root and mmdebstrap")
    root = CACHE / "apptainer"
    if not (root / "usr" / "bin" / "apptainer").exists():
        _install(root)
    (root / "etc" / "localtime").touch()  # apptainer.conf binds it
    folder = tmp_path_factory.mktemp("apptainer")
    wrapper = folder / "apptainer"
    wrapper.write_text(_WRAPPER.format(root=root, capability=_LAST_CAPABILITY_ASKED))
    wrapper.chmod(0o755)
    asked = subprocess.run([wrapper, "--version"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"apptainer does not run here: {asked.stderr[-300:]}")
    return folder


def _install(root: Path) -> None:
    part = root.with_name(f".{root.name}.{os.getpid()}")
    part.parent.mkdir(parents=True, exist_ok=True)
    site = mirror()
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--format=directory", "--variant=apt",
         "--include=apptainer,mount,squashfuse,ca-certificates", '--aptopt=APT::Default-Release "trixie"',
         '--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=APT::Install-Recommends "false"', "trixie", str(part),
         *(f"deb {one} {suite} main" for one in site for suite in ("trixie", "sid"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        shutil.rmtree(part, ignore_errors=True)
        pytest.skip(f"apptainer cannot be had from Debian's sid today: {made.stderr[-300:]}")
    part.rename(root)
