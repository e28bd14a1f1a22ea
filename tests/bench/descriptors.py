"""What the open descriptors of a process are of, so that one too many can be acted on.

Each has a name that stays the same for as long as it is of the same thing: a file's path, the far end of a connection
that the process made, the near end of one that it took. Numbers that change with each connection are left out of it.
The far end of a connection over a Unix socket is in no file of the kernel's.
"""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_LISTENING = "0A"


def descriptors_of(pid: int) -> Counter[str]:
    """How many descriptors there are of each thing."""
    proc = Path(f"/proc/{pid}")
    # First, so that each socket among them is in the tables unless it is closed by then.
    targets = list(_targets(proc / "fd"))
    sockets = {**dict(_internet_sockets(proc / "net")), **dict(_unix_sockets(proc / "net"))}
    return Counter(_name(target, sockets) for target in targets)


def _targets(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        try:
            yield str(entry.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile


def _name(target: str, sockets: dict[str, str]) -> str:
    """`target` is a path, or `kind:[inode]`; what has no inode of its own is `anon_inode:[kind]`."""
    kind, found, inode = target.partition(":[")
    if not found or kind == "anon_inode":
        return target
    return sockets.get(inode.removesuffix("]"), kind)


def _internet_sockets(folder: Path) -> Iterator[tuple[str, str]]:
    """TCP sockets by inode: see proc_pid_net(5), whose columns are the same for both families."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in (folder / table).read_text().splitlines()[1:]]
    taken_at = {row[1].rpartition(":")[2] for row in rows if row[3] == _LISTENING}
    for _, local, remote, state, _, _, _, _, _, inode in (row[:10] for row in rows):
        if state == _LISTENING:
            yield inode, f"listening at {_address(local)}"
        elif local.rpartition(":")[2] in taken_at:
            yield inode, f"connection taken at {_address(local)}"
        else:
            yield inode, f"connection to {_address(remote)}"


def _unix_sockets(folder: Path) -> Iterator[tuple[str, str]]:
    """Unix sockets by inode; only those bound to a path have one."""
    for line in (folder / "unix").read_text().splitlines()[1:]:
        inode, *path = line.split(maxsplit=7)[6:]
        yield inode, " ".join(["unix socket", *path])


def _address(text: str) -> str:
    """`0100007F:1F90` is 127.0.0.1:8080: the words of the address are in the machine's order, the port is not."""
    words, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, packed)}:{int(port, 16)}"
