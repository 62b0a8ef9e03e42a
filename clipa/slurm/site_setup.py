"""The site's own lines in a batch script: its shell functions are there, and a line that fails stops the attempt.

A batch script reads no profile, and jobs get nothing of the submitter's environment: so `module` is no command there
until the site's profile has defined it. Without a check, bash goes on after a line that failed, and a training runs
with other libraries than its profile says.
"""

from __future__ import annotations

from collections.abc import Sequence

MODULE_VARIABLES = ("MODULESHOME", "LMOD_PKG", "MODULEPATH")
"""Variables of the submitter that say where the site's modules are."""
_INITS = (
    '"${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash"',
    '"${MODULESHOME:-/usr/share/modules}/init/bash"',
    "/etc/profile.d/lmod.sh",
    "/etc/profile.d/modules.sh",
)
_BEFORE = (
    "# The site's shell functions (module, ml) come from its profile, which a batch script does not read.",
    'clipa_path="$PATH"',
    "type module >/dev/null 2>&1 || . /etc/profile >/dev/null 2>&1 </dev/null || :",
    f"for clipa_init in {' '.join(_INITS)}; do",
    '  type module >/dev/null 2>&1 || { [ -r "$clipa_init" ] && . "$clipa_init" >/dev/null 2>&1; } || :',
    "done",
    'export PATH="$clipa_path:$PATH"',
)


def setup_lines(lines: Sequence[str], tail: str) -> list[str]:
    """Return bash for the profile's `setup` lines; nothing where there are none.

    A command that fails at the top level, or that ends the script, is reported by the tail with what the lines wrote
    to their error output. Commands inside files that a line sources may fail, as in any shell.

    Args:
        lines: of the profile, unchanged.
        tail: the command of the tail, without its last words.
    """
    if not lines:
        return []
    report = f'{tail} setup "$clipa_code" --line "$clipa_line" --words "$clipa_words"'
    return [
        *_BEFORE,
        "clipa_line=; clipa_words=/dev/null",
        'clipa_file="$(mktemp)" && clipa_words="$clipa_file" && exec 3>&2 2>"$clipa_words"',
        "clipa_setup_failed() {",
        "  clipa_code=$1; trap - ERR EXIT; [ ! -f \"$clipa_words\" ] || { exec 2>&3; cat \"$clipa_words\" >&2; }",
        f"  {report}; clipa_code=$?",
        '  rm -f "$clipa_file"; exit "$clipa_code"',
        "}",
        # Bash's own word for the command is the last one inside a function: the script's line says more.
        "trap 'clipa_code=$?; clipa_number=$LINENO; [ \"${#BASH_SOURCE[@]}\" -gt 1 ] || { "
        'clipa_line="$(sed -n "${clipa_number}p" "$0")"; clipa_setup_failed "$clipa_code"; }\' ERR',
        "trap 'clipa_setup_failed $?' EXIT",
        *lines,
        "trap - ERR EXIT",
        "# Modules before 4 say an error and return 0.",
        'grep -q ":ERROR:" "$clipa_words" && clipa_line="module" && clipa_setup_failed 1',
        'if [ -f "$clipa_words" ]; then exec 2>&3 3>&-; cat "$clipa_words" >&2; rm -f "$clipa_words"; fi',
    ]  # fmt: skip
