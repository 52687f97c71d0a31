"""Ask only public servers over https: for addresses that strangers gave.

A submission names the address of its files. Nobody may have the machine that reads it ask a service
of its own network, by a name that leads there or by a redirection.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from contextlib import suppress
from typing import Any

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.poolmanager import PoolManager

__all__ = ["NotPublicError", "check_public", "public_session"]

HEADERS_S = 60.0
"""Longest wait for all headers of an answer."""
_MOST_REDIRECTS = 5


class NotPublicError(HTTPError):
    """The address is that of this machine, of its network, or reserved."""


def public_session() -> requests.Session:
    """Make a session that talks https with public addresses only, after every redirection too.

    Reads no proxies and no passwords from the environment.
    """
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = _MOST_REDIRECTS
    session.mount("https://", _Public(max_retries=0))
    session.mount("http://", _Refused())
    return session


def check_public(address: str) -> None:
    """Raise NotPublicError unless an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link
    # IPv6 addresses that hold one of IPv4 are reserved, but for 6to4.
    inner = getattr(ip, "sixtofour", None) or ip
    if not all(each.is_global and not each.is_multicast for each in (ip, inner)) or ip.is_reserved:
        raise NotPublicError(f"{address} is not a public address")


class _Connection(HTTPSConnection):
    """A connection that is made to public addresses only."""

    def _new_conn(self) -> Any:
        # All of a name's addresses, before a packet is sent to any.
        for found in socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM):
            check_public(str(found[4][0]))
        connected = super()._new_conn()
        try:
            check_public(str(connected.getpeername()[0]))  # the name may have changed meanwhile
        except NotPublicError:
            connected.close()
            raise
        return connected

    def getresponse(self) -> Any:
        # The timeout is one for each byte: a server that sends one at a time would never end.
        sock, late = self.sock, threading.Event()

        def cut() -> None:
            late.set()
            with suppress(OSError):  # it has closed meanwhile
                sock.shutdown(socket.SHUT_RDWR)

        watch = threading.Timer(HEADERS_S, cut)
        watch.daemon = True
        watch.start()
        try:
            response = super().getresponse()
        finally:
            watch.cancel()
        if late.is_set():  # headers end where the connection does
            raise TimeoutError(f"no whole answer within {HEADERS_S:g} s")
        return response


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class _Public(HTTPAdapter):
    """Send requests over :class:`_Connection`."""

    def init_poolmanager(self, *args: Any, **keywords: Any) -> None:
        super().init_poolmanager(*args, **keywords)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {"https": _Pool}


class _Refused(BaseAdapter):
    """Send nothing."""

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        raise requests.exceptions.InvalidURL(f"{request.url}: expected https")

    def close(self) -> None:
        """Nothing is open."""
