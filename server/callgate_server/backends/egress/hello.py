"""Whether what a tool begins to send in a tunnel is TLS for the host that the tunnel was allowed for.

One address often serves many hosts, and the name in the first message is what chooses among them. The message is read
by the TLS library, which is asked for nothing but that name; what goes on is what the tool sent, byte for byte.
"""

import ssl
from typing import Final

from callgate_server.backends.egress.authority import asks_for

# A first message that is larger than this is none.
_MOST_BYTES: Final = 65536


class HelloReader:
    """Reads the first message of one connection to `host`, a plain one."""

    def __init__(self, host: str) -> None:
        self._fits: bool | None = None
        self._read = 0
        self._incoming = ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def look(_: ssl.SSLObject, asked: str | None, __: ssl.SSLContext) -> int:
            self._fits = asks_for(host, asked)
            # The handshake ends here, whatever it asks for: nobody answers it.
            return ssl.ALERT_DESCRIPTION_CLOSE_NOTIFY

        context.sni_callback = look
        self._tls = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)

    def feed(self, data: bytes) -> bool:
        """Take the next bytes. Return whether the message is complete, and for that host.

        Raises:
            ValueError: it is not, or it is no TLS.
        """
        self._read += len(data)
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            if not data or self._read > _MOST_BYTES:
                raise ValueError("the first message of TLS does not end") from None
            return False
        except ssl.SSLError:
            pass
        if not self._fits:
            raise ValueError("no TLS, or for another host")
        return True
