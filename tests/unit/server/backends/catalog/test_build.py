"""Building a catalog: schemas first, images then, the lock last; and the repository's own schemas are not stale."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest

from callgate_server.backends.catalog.build import BuildReport, build, stale_schemas
from callgate_server.backends.catalog.lock import load_catalog
from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.backends.json_schema import check_constant, check_schema
from callgate_server.model.egress import InternalService

SANDBOX_IMAGES = Path(__file__).resolve().parents[5] / "sandbox_images"


class FakeBuilder:
    """Gives each folder a digest made of its files, as the real one does."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def build(self, folders: Mapping[str, Path], progress: Callable[[str], None]) -> dict[str, str]:
        for name in folders:
            progress(f"image {name}")
            self.built.append(name)
        return {name: "sha256:" + f"{len(list(folder.rglob('*'))):064x}" for name, folder in folders.items()}


class BrokenBuilder:
    def build(self, folders: Mapping[str, Path], progress: Callable[[str], None]) -> dict[str, str]:
        raise RuntimeError("the container engine failed")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    target = tmp_path / "sandbox_images"
    shutil.copytree(SANDBOX_IMAGES, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def run(
    images: Path,
    lock: Path,
    *,
    builder: FakeBuilder | BrokenBuilder | None = None,
    write: bool = False,
    internal: Sequence[InternalService] = (),
) -> BuildReport:
    said: list[str] = []
    return build(
        [images],
        lock,
        images=builder or FakeBuilder(),
        check_schema=check_schema,
        check_constant=check_constant,
        write_schemas=write,
        progress=said.append,
        internal=internal,
    )


def test_the_committed_schemas_are_what_the_tools_code_says() -> None:
    assert stale_schemas(declarations(image_folders([SANDBOX_IMAGES]).values())) == {}


def test_the_tools_of_the_repository_are_all_declared() -> None:
    tools = {found.manifest().tool for found in declarations(image_folders([SANDBOX_IMAGES]).values())}
    assert tools == {
        *("python.run", "shell.run", "webhooks.sign", "text.diff"),
        *("http.request", "web.fetch", "messages.post", "sql.query", "sql.execute"),
    }


def test_a_build_writes_a_lock_that_loads(images: Path, tmp_path: Path) -> None:
    lock = tmp_path / "catalog.lock"
    report = run(images, lock)
    assert report.catalog is not None
    assert load_catalog([images], lock).digest == report.catalog.digest
    assert set(report.images) == {"base", "python", "shell", "sql", "web"}
    assert (report.written, report.drifted) == ((), ())


def test_drift_is_reported_and_nothing_is_built(images: Path, tmp_path: Path) -> None:
    lock = tmp_path / "catalog.lock"
    code = images / "python/tools/text_diff.py"
    code.write_text(code.read_text().replace('("maximum", 100)', '("maximum", 50)'))
    (images / "python/tools/webhooks.sign.output.schema.json").unlink()
    builder = FakeBuilder()
    report = run(images, lock, builder=builder)
    assert sorted(path.name for path in report.drifted) == [
        "text.diff.input.schema.json",
        "webhooks.sign.output.schema.json",
    ]
    assert report.catalog is None
    assert builder.built == []
    assert not lock.exists()


def test_drift_is_mended_when_asked_for(images: Path, tmp_path: Path) -> None:
    file = images / "python/tools/webhooks.sign.output.schema.json"
    file.unlink()
    report = run(images, tmp_path / "catalog.lock", write=True)
    assert report.written == (file,)
    assert file.read_text() == (SANDBOX_IMAGES / "python/tools" / file.name).read_text()
    assert run(images, tmp_path / "catalog.lock").written == ()


def test_a_schema_written_by_hand_is_left_alone(images: Path, tmp_path: Path) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    before = manifest.read_bytes()
    run(images, tmp_path / "catalog.lock", write=True)
    assert manifest.read_bytes() == before
    assert not list(manifest.parent.glob("*.json"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"shell_run:run"', '"shell_run:walk"', "no function `walk`"),
        ('"shell_run:run"', '"missing:run"', r"line 5: run.python: there is no missing.py"),
        ("maxItems: 256", "maxItems: -1", "the input schema"),
        ("effect: read", "effect: none", "effect"),
    ],
)
def test_a_tool_that_is_not_fit_stops_the_build_before_an_image(
    images: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    manifest.write_text(manifest.read_text().replace(old, new))
    builder = FakeBuilder()
    with pytest.raises(ValueError, match=says):
        run(images, tmp_path / "catalog.lock", builder=builder)
    assert builder.built == []


CONSTANT = "fallback:\n  constant: {exit_code: 0}\n"


def test_a_constant_fallback_that_fits_the_output_is_built(images: Path, tmp_path: Path) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    manifest.write_text(manifest.read_text() + CONSTANT)
    report = run(images, tmp_path / "catalog.lock")
    assert report.catalog is not None
    fallback = report.catalog.tools["shell.run"].manifest.fallback
    assert fallback is not None
    assert fallback.constant == {"exit_code": 0}


def test_a_constant_fallback_that_does_not_fit_the_output_stops_the_build_before_an_image(
    images: Path, tmp_path: Path
) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    declared = manifest.read_text()
    manifest.write_text(declared + CONSTANT.replace("0}", "never-shown}"))
    builder = FakeBuilder()
    with pytest.raises(ValueError, match=r"shell\.run\.yaml") as caught:
        run(images, tmp_path / "catalog.lock", builder=builder)
    assert str(caught.value) == (
        f"{manifest}: line {len(declared.splitlines()) + 2}: fallback.constant: "
        "does not fit the `output` of shell.run at /exit_code: must be of type integer; change either"
    )
    assert builder.built == []
    assert not (tmp_path / "catalog.lock").exists()


def test_a_failed_image_leaves_the_lock_as_it_was(images: Path, tmp_path: Path) -> None:
    lock = tmp_path / "catalog.lock"
    run(images, lock)
    before = lock.read_bytes()
    with pytest.raises(RuntimeError, match="engine"):
        run(images, lock, builder=BrokenBuilder())
    assert lock.read_bytes() == before


def test_a_tool_declared_twice_is_refused(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "shell", images / "other")
    manifest = images / "other/tools/shell.run.yaml"
    manifest.write_text(manifest.read_text().replace("image: shell", "image: other"))
    builder = FakeBuilder()
    with pytest.raises(ValueError, match=r"shell/tools/shell\.run\.yaml.* declare the same tool"):
        run(images, tmp_path / "catalog.lock", builder=builder)
    assert builder.built == []


KEY = 'secrets:\n  - {name: key, from: "kv/data/{tenant}/app#key", deliver: egress}\n'


@pytest.mark.parametrize(
    ("declared", "line", "says"),
    [
        ("egress:\n  - {host: '*.com'}\n", 2, "egress.0.host: Value error, a wildcard is `*.` and at least two labels"),
        ("egress:\n  - {host: '*.co.uk'}\n", 2, "egress.0.host: Value error, anybody can have a name"),
        (
            KEY + "egress:\n  - {host: a.example, secret: key}\n  - {host: a.example, methods: [GET]}\n",
            5,
            "egress.1: rule 0 allows some of the same requests, and the two disagree about the secret",
        ),
        (KEY + "egress:\n  - {host: b.example}\n", 2, "secrets.0.deliver: no rule of `egress` names key"),
        (KEY + "egress:\n  - {host: '*.a.example', secret: key}\n", 4, "egress.0.host: a secret goes to one host"),
        (
            KEY + "egress:\n  - {host: own.example, scheme: http, secret: key}\n",
            4,
            "egress.0.scheme: the secret would travel to own.example:80 in clear: write `scheme: https`",
        ),
    ],
)
def test_egress_that_is_too_wide_or_leaves_a_secret_open_stops_the_build_with_line_and_remedy(
    images: Path, tmp_path: Path, declared: str, line: int, says: str
) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    kept = "".join(each for each in manifest.read_text().splitlines(keepends=True) if not each.startswith("egress:"))
    manifest.write_text(kept + declared)
    builder = FakeBuilder()
    with pytest.raises(ValueError, match=r"shell\.run\.yaml") as caught:
        run(images, tmp_path / "catalog.lock", builder=builder)
    assert f"line {len(kept.splitlines()) + line}: {says}" in str(caught.value)
    assert builder.built == []


def test_a_secret_may_be_declared_for_a_service_of_the_operators_own(images: Path, tmp_path: Path) -> None:
    manifest = images / "shell/tools/shell.run.yaml"
    kept = "".join(each for each in manifest.read_text().splitlines(keepends=True) if not each.startswith("egress:"))
    manifest.write_text(kept + KEY + "egress:\n  - {host: own.example, scheme: http, secret: key}\n")
    own = InternalService("own.example", None, (ip_network("10.0.0.0/8"),))
    assert run(images, tmp_path / "catalog.lock", internal=[own]).catalog is not None
