"""Looking for a secret where it must not be: in its usual encodings, in everything on disk, in the memory of a process."""

import base64
from pathlib import Path

from support.gateway import Deployment


def forms(secret: str) -> dict[str, bytes]:
    """Encodings that must be covered."""
    raw = secret.encode()
    shifted = {f"base64 at {n}": base64.b64encode(b"x" * n + raw)[4 if n else 0 : -4] for n in range(3)}
    return shifted | {
        "raw": raw,
        "urlsafe": base64.urlsafe_b64encode(raw).rstrip(b"="),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "percent": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "json": "".join(f"\\u{byte:04x}" for byte in raw).encode(),
        "html": "".join(f"&#{byte};" for byte in raw).encode(),
        "reversed": raw[::-1],
    }


def hits(secret: str, haystack: bytes) -> list[str]:
    return [name for name, form in forms(secret).items() if form in haystack]


def everything_written(deployment: Deployment) -> bytes:
    """Ledger, write-ahead log, gateway log at level debug, configuration, engine's own log files of our containers."""
    return b"\n".join(path.read_bytes() for path in sorted(deployment.folder.rglob("*")) if path.is_file())


def memory_of(pid: int) -> bytes:
    """All memory of a process that can be read, by the host's eyes."""
    found = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            if " r" in line and "[v" not in line:
                memory.seek(begin)
                found.append(memory.read(end - begin))
    return b"\n".join(found)
