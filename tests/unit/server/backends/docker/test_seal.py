"""What the filter between a built and a finished image lets through, and what its check finds."""

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.docker.seal import faults, readable, sealed

Entry = tuple[tarfile.TarInfo, bytes]


def entry(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o755, **more: object
) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, mode: int = 0o755) -> Entry:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def tar(*entries: Entry) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    target.seek(0)
    return target


def kept(*entries: Entry) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(sealed(tar(*entries))))) as archive:
        return {member.name: member for member in archive}


GOOD = (
    entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\nsandbox:x:65532:65532::/tmp:/usr/sbin/nologin\n"),
    entry("usr/bin/python3", kind=tarfile.SYMTYPE, linkname="python3.11"),
    entry("opt/callgate/runner/callgate_runner/main.py", b"main = None\n"),
    *map(folder, ("opt/callgate/tools", "opt/callgate/packages", "run/secrets", "out", "tmp")),
)


def test_what_a_sandbox_needs_passes_and_is_found_good() -> None:
    assert faults(io.BytesIO(b"".join(sealed(tar(*GOOD))))) == []


def test_setuid_and_setgid_are_taken_away_and_sticky_stays() -> None:
    found = kept(entry("usr/bin/su", mode=0o4755), entry("usr/bin/wall", mode=0o2755), folder("tmp", 0o1777))
    assert {name: member.mode for name, member in found.items()} == {
        "usr/bin/su": 0o755,
        "usr/bin/wall": 0o755,
        "tmp": 0o1777,
    }


def test_file_capabilities_are_taken_away() -> None:
    headers = {"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.user.note": "y"}
    found = kept(entry("usr/bin/ping", b"x", pax_headers=headers))
    assert not [key for key in found["usr/bin/ping"].pax_headers if "xattr" in key]


@pytest.mark.parametrize(
    "name",
    [
        *("usr/bin/apt", "usr/bin/apt-get", "usr/bin/dpkg", "bin/dpkg", "usr/sbin/dpkg-preconfigure", "usr/bin/pip3"),
        *(
            "usr/local/bin/pip",
            "usr/lib/apt/methods/http",
            "var/lib/dpkg/status",
            "var/lib/apt/lists/x",
            "etc/apt/trusted",
        ),
        *("usr/lib/python3/dist-packages/pip/__init__.py", "var/cache/apt/x.deb", "var/log/dpkg.log"),
        *("usr/share/doc/jq/changelog.gz", "usr/share/man/man1/jq.1.gz", "usr/share/locale/de/x.mo"),
        *("tmp/left", "run/lock/x", "out/left", "root/.bashrc", "run/secrets/key", "dev/core", ".dockerenv"),
    ],
)
def test_what_is_not_for_a_sandbox_is_left_out(name: str) -> None:
    assert kept(entry(name, b"x")) == {}
    assert kept(entry(f"./{name}", b"x")) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("usr/bin/jq", "usr/bin/pipewire", "usr/share/doc/jq/copyright", "opt/callgate/tools/apt.py", "etc/hosts"),
        *("opt/callgate/packages/pip_tools/x.py", "usr/lib/python3.11/os.py", "usr/share/zoneinfo/UTC"),
    ],
)
def test_what_a_tool_may_need_stays_as_it_is(name: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(sealed(tar(entry(name, b"content", mode=0o644)))))) as archive:
        member = archive.getmember(name)
        stream = archive.extractfile(member)
        assert stream is not None
        assert stream.read() == b"content"
        assert member.mode == 0o644


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_left_out(kind: bytes) -> None:
    assert kept(entry("usr/lib/odd", kind=kind)) == {}


def test_links_stay_links() -> None:
    found = kept(
        entry("usr/bin/a", b"x"),
        entry("usr/bin/b", kind=tarfile.LNKTYPE, linkname="usr/bin/a"),
        entry("bin", kind=tarfile.SYMTYPE, linkname="usr/bin"),
    )
    assert (found["usr/bin/b"].linkname, found["bin"].linkname) == ("usr/bin/a", "usr/bin")


def test_a_hard_link_to_what_was_removed_is_an_error() -> None:
    entries = (entry("usr/bin/dpkg", b"x"), entry("usr/bin/harmless", kind=tarfile.LNKTYPE, linkname="usr/bin/dpkg"))
    with pytest.raises(ValueError, match="/usr/bin/harmless is a hard link"):
        kept(*entries)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (entry("usr/bin/su", mode=0o4755), "/usr/bin/su is setuid or setgid"),
        (folder("var/mail", 0o2775), "/var/mail is setuid or setgid"),
        (entry("bin/x", pax_headers={"SCHILY.xattr.security.capability": "x"}), "/bin/x has file capabilities"),
        (entry("usr/lib/odd", kind=tarfile.BLKTYPE), "/usr/lib/odd is a device"),
        (entry("usr/bin/apt-get"), "/usr/bin/apt-get belongs to a package manager"),
    ],
)
def test_each_fault_is_named(bad: Entry, says: str) -> None:
    assert faults(tar(*GOOD, bad)) == [says]


@pytest.mark.parametrize("missing", range(1, len(GOOD)))
def test_what_is_missing_is_named(missing: int) -> None:
    rest = [one for number, one in enumerate(GOOD) if number != missing]
    assert faults(tar(*rest)) == [f"/{GOOD[missing][0].name} is missing"]


def test_a_missing_user_is_named() -> None:
    assert faults(tar(entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"), *GOOD[1:])) == ["/etc/passwd has no user 65532"]


def test_the_engines_own_devices_are_no_fault() -> None:
    assert faults(tar(*GOOD, entry("dev/console", kind=tarfile.CHRTYPE))) == []


@given(st.binary(max_size=4096), st.lists(st.integers(1, 700), max_size=20), st.integers(1, 900))
def test_chunks_of_any_size_read_as_one_file(data: bytes, sizes: list[int], step: int) -> None:
    def chunks() -> Iterator[bytes]:
        left = data
        for size in sizes:
            yield left[:size]
            left = left[size:]
        yield left

    source, found = readable(chunks()), b""
    while block := source.read(step):
        found += block
    assert found == data
