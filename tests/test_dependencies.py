"""Dependencies, as far as known without a network: versions that fit, licences; the audit."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import audit
from tests.conftest import ROOT

# LGPL binds only changes of the library itself.
COPYLEFT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
# Offered under a choice of licences, of which we take the other, or names the GPL otherwise.
EXCEPTIONS: dict[str, str] = {}


def needed(distribution: str, extra: str = "") -> set[str]:
    """What an installed package needs here, directly."""
    found: set[str] = set()
    for text in importlib.metadata.requires(distribution) or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            found.add(canonicalize_name(need.name))
    return found


def runtime() -> set[str]:
    """All that a user installs with the project, as far as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting: set[str] = {
        canonicalize_name(Requirement(text).name) for text in project["dependencies"]
    }
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        try:
            needs = needed(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        waiting |= needs - found
    return found


def licence(metadata) -> str:
    """What a package says of its licence: the expression, else classifiers, else the first line."""
    expression = metadata.get("License-Expression")
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    return expression or "; ".join(classifiers) or (metadata.get("License") or "")[:100]


def is_copyleft(text: str) -> bool:
    """Whether it may only be distributed under a GPL; 'MIT OR GPL' leaves the choice."""
    parts = re.split(r"\bOR\b", text)
    return all(COPYLEFT.search(part) for part in parts) and "Lesser" not in text


def test_no_runtime_dependency_is_under_a_gpl():
    found = {
        name: licence(importlib.metadata.metadata(name)) for name in runtime() if name != "pip"
    }
    assert len(found) > 30
    bad = {n: text for n, text in found.items() if is_copyleft(text) and n not in EXCEPTIONS}
    assert not bad


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("GPL-3.0-only", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("AGPL-3.0-or-later", True),
        ("MIT OR GPL-2.0-or-later", False),
        ("LGPL-3.0-only", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Apache-2.0", False),
    ],
)
def test_licences_are_told_apart(text, bad):
    assert is_copyleft(text) is bad


def test_installed_versions_fit_each_other():
    """As `pip check` does, for what is installed with the project."""
    wrong = set()
    for name in runtime():
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                version = importlib.metadata.version(need.name)
            except importlib.metadata.PackageNotFoundError:
                wrong.add(f"{name} needs {need.name}, which is not installed")
                continue
            if not need.specifier.contains(version, prereleases=True):
                wrong.add(f"{name} needs {need}, installed is {version}")
    assert not wrong


# --- the audit --------------------------------------------------------------------------------


def answer(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        ([answer(GOOD, UNKNOWN)], 0, "audited 1 packages of requirements.lock by pypi: 0 known"),
        ([answer(GOOD, BAD)], 1, "vulnerable: b 2: PYSEC-1, mended in 3"),
        ([answer(UNKNOWN), answer(BAD)], 1, "by osv: 1 known"),
        (["", "Traceback"], 0, "not audited: the service cannot be reached"),
        ([answer(UNKNOWN), answer()], 0, "not audited: the service cannot be reached"),
    ],
)
def test_only_a_known_vulnerability_fails_the_audit(monkeypatch, capsys, answers, status, words):
    left = list(answers)
    monkeypatch.setattr(audit, "ask", lambda python, service: audit.read(left.pop(0)))
    assert audit.main(["python"]) == status
    assert words in capsys.readouterr().out
