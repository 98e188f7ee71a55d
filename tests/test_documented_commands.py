"""Commands in the documentation are understood: config, keys and types, without running them."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Iterator

import pytest
from absl import flags
from ml_collections import config_flags

from cmunet_jax import config as config_lib
from cmunet_jax import main
from tests.conftest import ROOT

COMMAND = "python -m cmunet_jax.main"
# Lists of configs and patterns of commands, not commands.
PLACEHOLDERS = ("CONFIG", "...", "…", "@", "NAME", "<")


def commands(text: str) -> Iterator[str]:
    """Commands of indented and fenced blocks, continued lines joined, variables put in."""
    text = re.sub(r"\\\n\s*", " ", text)
    variables: dict[str, str] = {}
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not (fenced or line.startswith("    ")):
            continue
        line = line.strip()
        if found := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[found[1]] = found[2]
        if COMMAND not in line or any(word in line for word in PLACEHOLDERS):
            continue
        line = line[line.index(COMMAND) + len(COMMAND) :].split("  #")[0]
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b|\${{{name}}}", value, line)
        # What a loop counts or names is only known when it runs.
        yield re.sub(r"\$\w+", "1", line).strip()


def words(command: str) -> list[str]:
    """The words of a command up to what a shell does with it: `&`, `;`, `|`, `>`."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    return list(itertools.takewhile(lambda word: word[0] not in ";&|<>", lexer))


def _all() -> list[tuple[str, str]]:
    files = [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
        *sorted(ROOT.glob("launch/**/*.md")),
    ]
    return [(f.relative_to(ROOT).as_posix(), c) for f in files for c in commands(f.read_text())]


FOUND = _all()


def test_there_are_commands_to_check():
    assert {"README.md", "docs/results.md"} <= {file for file, _ in FOUND}
    assert len(FOUND) > 10


@pytest.mark.parametrize(("file", "command"), FOUND)
def test_a_documented_command_is_understood(file, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = main.spell_out(["main", *words(command)])
    monkeypatch.setattr(sys, "argv", argv)  # where config flags look for overrides
    path, argument = main._split_path(argv)
    main._check_overrides(argv, path, argument)
    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=known)
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    assert known(argv) == ["main"]
    config_lib.check(config.value)
