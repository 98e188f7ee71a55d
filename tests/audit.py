"""Asks a vulnerability service about every package of requirements.lock: `make audit`.

    python -m tests.audit PYTHON    # PYTHON has pip-audit, in an environment of its own

The exit status is 1 only for a known vulnerability. Where no service can be reached, that is said,
and the run goes on: what is checked without a network is in test_dependencies.py.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence

from tests.conftest import ROOT

SERVICES = ("pypi", "osv")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a service said: packages that it knows, those that it does not, and findings."""

    audited: int
    skipped: int
    findings: list[str]


def read(text: str) -> Report | None:
    """The report in pip-audit's JSON; None where the service could not be asked."""
    try:
        packages = json.loads(text)["dependencies"]
        known = [p for p in packages if "skip_reason" not in p]
        findings = [
            f"{p['name']} {p['version']}: {found['id']}, mended in "
            f"{', '.join(found['fix_versions']) or 'no version yet'}"
            for p in known
            for found in p["vulns"]
        ]
    except (ValueError, KeyError, TypeError):
        return None
    return Report(len(known), len(packages) - len(known), findings) if known else None


def ask(python: str, service: str) -> Report | None:
    """Runs pip-audit over the lock file with one service."""
    command = [python, "-m", "pip_audit", "-r", "requirements.lock", "--no-deps", "--disable-pip",
               "--vulnerability-service", service, "--format", "json", "--timeout", "15",
               "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read(done.stdout)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    for service in SERVICES:
        report = ask(arguments[0], service)
        if report is None:
            continue
        for line in report.findings:
            print(f"vulnerable: {line}")
        print(
            f"audited {report.audited} packages of requirements.lock by {service}: "
            f"{len(report.findings)} known vulnerabilities; {report.skipped} not known to it"
        )
        return 1 if report.findings else 0
    print("not audited: the service cannot be reached")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
