"""The real images, built on the real engine: small, without setuid or package manager, and with what tools need."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from callgate_server.backends.docker import seal
from callgate_server.backends.docker.images import DockerImages
from support.images import ENGINE, ROOT, folders, images

NAMES = ("base", "python", "shell", "sql", "web")
MAX_BYTES = {"base": 130_000_000, "python": 260_000_000, "shell": 140_000_000, "sql": 140_000_000, "web": 145_000_000}
# Building from nothing bootstraps Debian and fetches packages.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=ENGINE)
    yield client
    client.close()


@pytest.fixture(scope="module")
def run(engine: docker.DockerClient) -> Callable[..., str]:
    """Run a command in a throwaway container as the sandbox's user and return what it prints."""

    def _run(name: str, *command: str) -> str:
        output: bytes = engine.containers.run(
            images()[name],
            list(command),
            remove=True,
            network_mode="none",
            read_only=True,
            user="65532:65532",
            tmpfs={"/tmp": "size=16m", "/out": "size=1m"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
        return output.decode()

    return _run


def python(run: Callable[..., str], name: str, code: str) -> Any:
    """What `code` prints as JSON, under the sandbox's Python with an image's packages and tools."""
    path = (
        "import json, sys; sys.path[:0] = ['/opt/callgate/tools', '/opt/callgate/packages', '/opt/callgate/runner']\n"
    )
    return json.loads(run(name, "/usr/bin/python3", "-I", "-S", "-c", path + code))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_no_faults_as_the_engine_exports_it(engine: docker.DockerClient, name: str) -> None:
    container = engine.containers.create(images()[name], ["/never"])
    try:
        assert seal.faults(seal.readable(container.export())) == []
    finally:
        container.remove()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_brings_no_configuration_and_is_small(engine: docker.DockerClient, name: str) -> None:
    attributes = engine.images.get(images()[name]).attrs
    configuration = {key: value for key, value in attributes["Config"].items() if value}
    configuration.pop("Hostname", None)
    configuration.pop("Image", None)
    assert list(configuration) == ["Labels"]
    assert list(configuration["Labels"]) == ["callgate.source"]
    assert len(attributes["RootFS"]["Layers"]) == 1
    assert attributes["Size"] < MAX_BYTES[name]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_an_image_is_setuid_or_installs_packages(run: Callable[..., str], name: str) -> None:
    assert run(name, "/bin/sh", "-c", "find / -xdev -perm /6000 2>/dev/null; true") == ""
    assert run(name, "/bin/sh", "-c", "command -v apt apt-get dpkg pip pip3; true") == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_runner_imports_and_is_compiled(run: Callable[..., str], name: str) -> None:
    code = "from callgate_runner import main; print(json.dumps([callable(main.main), main.__cached__]))"
    found, cached = python(run, name, code)
    assert found
    assert run(name, "/bin/sh", "-c", f"test -s {cached} && echo compiled") == "compiled\n"


def test_python_has_its_packages_compiled(run: Callable[..., str]) -> None:
    code = (
        "import os, numpy, pandas\n"
        "frame = pandas.DataFrame({'a': numpy.arange(4)})\n"
        "print(json.dumps([numpy.__version__, pandas.__version__, int(frame.a.sum()), os.path.exists(pandas.__cached__)]))"
    )
    lock = (ROOT / "sandbox_images/python/requirements.lock").read_text()
    numpy, pandas, total, compiled = python(run, "python", code)
    assert f"numpy=={numpy} " in lock
    assert f"pandas=={pandas} " in lock
    assert (total, compiled) == (6, True)


@pytest.mark.parametrize(
    ("name", "tools"),
    [("python", "python_run, webhooks, text_diff, workspace"), ("shell", "shell_run, workspace")],
)
def test_tools_import_in_their_image(run: Callable[..., str], name: str, tools: str) -> None:
    assert python(run, name, f"import {tools}\nprint('true')") is True


def test_the_shell_has_jq_and_coreutils(run: Callable[..., str]) -> None:
    script = "echo '{\"a\": [1, 2]}' | jq -c .a; jq --version; seq 3 | sort -r | head -n 1"
    rows, version, last = run("shell", "/bin/bash", "-eu", "-c", script).splitlines()
    assert (rows, last) == ("[1,2]", "3")
    assert version.startswith("jq-1.")


def test_what_did_not_change_is_not_built_again() -> None:
    said: list[str] = []
    assert DockerImages(ENGINE, ROOT / ".callgate").build(folders(), said.append) == images()
    assert said == []


class TestOwnImage:
    """A folder of a user's own becomes an image like ours."""

    @pytest.fixture
    def own(self, tmp_path: Path, engine: docker.DockerClient) -> Iterator[Path]:
        folder = tmp_path / "own-test"
        (folder / "tools").mkdir(parents=True)
        (folder / "tools/greet.py").write_text("def greet(name: str) -> str:\n    return f'hello {name}'\n")
        yield folder
        for image in engine.images.list("callgate/own-test"):
            for tag in image.tags:
                engine.images.remove(tag)

    def build(self, own: Path, dockerfile: str) -> str:
        (own / "Dockerfile").write_text(dockerfile)
        shipped = folders()
        return DockerImages(ENGINE, ROOT / ".callgate").build(shipped | {"own-test": own}, lambda line: None)[
            "own-test"
        ]

    def test_what_an_author_may_forget_is_done_for_them(self, own: Path, engine: docker.DockerClient) -> None:
        digest = self.build(
            own,
            "ARG BASE\nFROM ${BASE}\n"
            "RUN cp /bin/sh /usr/local/bin/rootsh && chmod 6755 /usr/local/bin/rootsh && mkfifo /opt/pipe\n"
            'ENV LD_PRELOAD=/evil.so\nVOLUME /data\nUSER 12345\nENTRYPOINT ["/bin/false"]\n'
            "HEALTHCHECK CMD /bin/true\n",
        )
        configuration = engine.images.get(digest).attrs["Config"]
        assert not any(configuration.get(key) for key in ("Env", "Volumes", "User", "Entrypoint", "Cmd", "OnBuild"))
        assert "Healthcheck" not in configuration
        command = "stat -c %a /usr/local/bin/rootsh; ls /opt; ls /opt/callgate/tools; command -v dpkg; true"
        output = engine.containers.run(
            digest, ["/bin/sh", "-c", command], remove=True, network_mode="none", user="65532"
        ).decode()
        assert output.split() == ["755", "callgate", "__pycache__", "greet.py", "workspace.py"]

    def test_a_tool_that_does_not_compile_stops_the_build(self, own: Path) -> None:
        (own / "tools/greet.py").write_text("def greet(:\n")
        with pytest.raises(RuntimeError, match=r"callgate/own-test:unsealed-\w+ cannot be built"):
            self.build(own, "ARG BASE\nFROM ${BASE}\n")

    def test_an_image_that_lacks_a_mount_point_is_not_let_through(self, own: Path, engine: docker.DockerClient) -> None:
        with pytest.raises(RuntimeError, match="/run/secrets is missing"):
            self.build(own, "ARG BASE\nFROM ${BASE}\nRUN rmdir /run/secrets\n")
        tags = [tag for image in engine.images.list("callgate/own-test") for tag in image.tags]
        assert all(":open-" in tag for tag in tags)

    def test_an_old_image_stays_for_those_who_still_run_it(self, own: Path, engine: docker.DockerClient) -> None:
        dockerfile = "ARG BASE\nFROM ${BASE}\n"
        first = self.build(own, dockerfile)
        tool = (own / "tools/greet.py").read_text()
        (own / "tools/greet.py").write_text("def greet() -> str:\n    return 'hello'\n")
        second = self.build(own, dockerfile)
        assert second != first
        assert engine.images.get(first).id == first
        (own / "tools/greet.py").write_text(tool)
        assert self.build(own, dockerfile) == first


def test_an_image_of_the_repository_needs_no_more_than_its_folder(tmp_path: Path) -> None:
    """A copy of the folders, elsewhere, is the same image: nothing of a path goes in."""
    for name, folder in folders().items():
        shutil.copytree(folder, tmp_path / name)
    copies = {name: tmp_path / name for name in folders()}
    assert DockerImages(ENGINE, ROOT / ".callgate").build(copies, lambda line: None) == images()
