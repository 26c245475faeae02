"""Where processes of a job listen: at the address that the job uses, not on every interface."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

import psutil

# Where what is on one node meets.
LOCAL = "127.0.0.1"
GLOO = "GLOO_SOCKET_IFNAME"


def listener(address: str, port: int, nodes: int) -> socket.socket:
    """A socket that listens at the address by which the other nodes reach this one.

    On every interface, with a warning, where this node does not know that address: many give their
    own name to the loopback device.

    Args:
        address: numeric, of this node.
        port: 0: any that is free.

    Raises:
        OSError: the port is taken (EADDRINUSE).
    """
    where = ipaddress.ip_address(address)
    family = socket.AF_INET6 if where.version == 6 else socket.AF_INET
    if nodes == 1 or not where.is_loopback:
        try:
            return socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    print(
        f"warning: this node takes {address} for its own address, by which the others cannot reach "
        "it: torch's store listens on every interface. Fix: mend the nodes' name service",
        flush=True,
    )
    return socket.create_server(("", port), family=family)


def numeric(host: str) -> str:
    """The address of a host.

    Raises:
        OSError: it has none here.
    """
    return str(socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)[0][4][0])


def stay_local() -> dict[str, str]:
    """The variable that keeps gloo on this machine, where nobody has chosen its interface."""
    if os.environ.get(GLOO):
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if LOCAL in {found.address for found in addresses}:
            return {GLOO: name}
    return {}
