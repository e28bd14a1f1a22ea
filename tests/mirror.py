"""Checks that every source module has its unit test where the house rules say, and that no unit test is orphaned.

`server/callgate_server/a/b.py` is tested by `tests/unit/server/a/test_b.py`, `client/callgate/x.py` by
`tests/unit/client/test_x.py`, the runner by `tests/unit/runner/`. Modules that only integration tests can
exercise are named below, each with the test that does.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = {
    ROOT / "server/callgate_server": ROOT / "tests/unit/server",
    ROOT / "client/callgate": ROOT / "tests/unit/client",
    ROOT / "sandbox_images/base/callgate_runner": ROOT / "tests/unit/runner",
}
SERVER = "server/callgate_server"
COMMAND_LINE = "tests/e2e/test_command_line.py"
CONTRACT = "tests/contract/test_sandbox_contract.py"
TESTED_ELSEWHERE = {
    f"{SERVER}/app.py": "tests/integration/test_gateway_lifecycle.py",
    f"{SERVER}/backends/docker/backend.py": CONTRACT,
    f"{SERVER}/backends/docker/options.py": CONTRACT,
    f"{SERVER}/backends/docker/sandbox.py": CONTRACT,
    f"{SERVER}/cli/__main__.py": COMMAND_LINE,
    f"{SERVER}/cli/catalog.py": COMMAND_LINE,
    f"{SERVER}/cli/doctor.py": COMMAND_LINE,
    f"{SERVER}/cli/keys.py": COMMAND_LINE,
    f"{SERVER}/cli/serving.py": "tests/integration/test_gateway_lifecycle.py",
    f"{SERVER}/execution/egress.py": "tests/integration/test_egress_of_sandboxes.py",
    f"{SERVER}/execution/sandbox.py": CONTRACT,
    f"{SERVER}/parts.py": "tests/integration/test_gateway_lifecycle.py",
    f"{SERVER}/observe/watch.py": "tests/unit/server/backends/test_telemetry.py",
}


def expected(source: Path, source_root: Path, test_root: Path) -> Path:
    relative = source.relative_to(source_root)
    return test_root / relative.parent / f"test_{relative.stem.lstrip('_')}.py"


def main() -> int:
    faults = []
    mirrored = set()
    for source_root, test_root in SOURCES.items():
        for source in sorted(source_root.rglob("*.py")):
            if source.name == "__init__.py":
                continue
            name = source.relative_to(ROOT).as_posix()
            test = expected(source, source_root, test_root)
            if name in TESTED_ELSEWHERE:
                if not (ROOT / TESTED_ELSEWHERE[name]).exists():
                    faults.append(f"{name}: {TESTED_ELSEWHERE[name]} does not exist")
            elif not test.exists():
                faults.append(f"{name}: no {test.relative_to(ROOT)}")
            mirrored.add(test)
        orphans = sorted(set(test_root.rglob("test_*.py")) - mirrored)
        faults += [f"{test.relative_to(ROOT)}: tests no module of that name" for test in orphans]
    sys.stderr.writelines(f"mirror: {fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
