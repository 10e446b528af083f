"""How a peer's Zenoh session is set up: a mesh over mutual TLS in which everybody writes under its own name alone.

Nothing is scouted; every peer listens at its endpoint and connects to the peers before it in the manifest. The access
control list denies by default. It lets a message in only if the common name of the certificate at the other end of the
connection is the name in the message's key:

    zo/NAME/all, zo/NAME/to/OTHER     messages of NAME             st/NAME        statements of NAME
    lv/NAME/RUN                       NAME is there                lg/OWNER/NAME/SINCE   NAME asks OWNER for its log
"""

from __future__ import annotations

import base64
from typing import Any, Final

from gradless.peers import certificates
from gradless.peers.keys import Identity, address
from gradless.peers.manifest import Manifest

SLACK: Final = 4096
"""Bytes of a message on the wire beside what it carries."""
THREADS: Final = f"({', '.join(f'{pool}: (worker_threads: 1)' for pool in ('rx', 'net', 'acc', 'app', 'tx'))})"
"""``ZENOH_RUNTIME``: a peer sends kilobytes a step, and its cores are for the model."""
WAIT: Final = {True: 200_000, False: 1_000_000}
"""Microseconds for which a full queue to one peer may hold up a message to all, before the connection to that peer is
closed and made anew; by whether peers agree, whose messages are small, or send whole models."""
WRITES: Final = ("put", "liveliness_token")


def settings(manifest: Manifest, identity: Identity, *, listen: str | None, limit: int) -> dict[str, Any]:
    """Return the settings of a session by their path.

    Args:
        manifest: of the run.
        identity: of this peer.
        listen: where to listen, if not at the endpoint in the manifest: tls/HOST:PORT.
        limit: most bytes of a message.
    """
    me = manifest.number(identity)
    return {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "listen/endpoints": [listen or own_endpoint(manifest.peers[me].endpoint)],
        "listen/exit_on_failure": True,
        "connect/endpoints": [member.endpoint for member in manifest.peers[:me]],
        "connect/timeout_ms": -1,
        "connect/exit_on_failure": False,
        "connect/retry": {"period_init_ms": 250, "period_max_ms": 2000, "period_increase_factor": 1.5},
        "transport/link/protocols": ["tls"],
        "transport/unicast/max_sessions": 2 * len(manifest.peers) + 4,
        "transport/link/rx/max_message_size": limit + SLACK,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": WAIT[manifest.agreed],
        "transport/link/tls": _tls(manifest, identity, me),
        "transport/shared_memory/enabled": False,
        "access_control": _access(manifest.names, manifest.names[me]),
    }


def own_endpoint(endpoint: str) -> str:
    """Return where a peer listens that others reach at an endpoint: there on a loopback, else on all interfaces."""
    host, port = address(endpoint)
    if host == "localhost":
        return f"tls/127.0.0.1:{port}"
    if address(endpoint).loopback:
        return endpoint
    return f"tls/[::]:{port}" if ":" in host else f"tls/0.0.0.0:{port}"


def _tls(manifest: Manifest, identity: Identity, me: int) -> dict[str, Any]:
    key = _base64(certificates.private_pem(identity.tls))
    certificate = _base64(manifest.peers[me].certificate.encode())
    return {
        "root_ca_certificate_base64": _base64(manifest.contents.ca.encode()),
        "enable_mtls": True,
        "verify_name_on_connect": True,
        "close_link_on_expiration": True,
        "listen_private_key_base64": key,
        "listen_certificate_base64": certificate,
        "connect_private_key_base64": key,
        "connect_certificate_base64": certificate,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _access(names: tuple[str, ...], me: str) -> dict[str, Any]:
    """Return the access control list of a peer; what no rule allows is denied, in both directions."""
    both = ["ingress", "egress"]
    listening = {
        "id": "listen",
        "permission": "allow",
        "flows": both,
        "messages": ["declare_subscriber", "declare_liveliness_subscriber", "liveliness_query"],
        "key_exprs": ["zo/**", "st/**", "lv/**"],
    }
    own = [
        _rule("out", ["egress"], WRITES, _written(me)),
        _rule("ask", ["egress"], ["query"], [f"lg/*/{me}/*"]),
        _rule("answer", ["egress"], ["reply", "declare_queryable"], [f"lg/{me}/**"]),
    ]
    others = {name: _of(name, me) for name in names if name != me}
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": [listening, *own, *(rule for rules in others.values() for rule in rules)],
        "subjects": [{"id": f"is-{name}", "cert_common_names": [name]} for name in others],
        "policies": [
            {
                "rules": ["listen", *(rule["id"] for rule in own), *(rule["id"] for rule in rules)],
                "subjects": [f"is-{name}"],
            }
            for name, rules in others.items()
        ],
    }


def _of(name: str, me: str) -> list[dict[str, Any]]:
    """Return what is let in from one other peer."""
    return [
        _rule(f"in-{name}", ["ingress"], WRITES, _written(name)),
        _rule(f"asks-{name}", ["ingress"], ["query"], [f"lg/{me}/{name}/*"]),
        _rule(f"answers-{name}", ["ingress"], ["reply", "declare_queryable"], [f"lg/{name}/**"]),
    ]


def _written(name: str) -> list[str]:
    return [f"zo/{name}/**", f"st/{name}", f"lv/{name}/*"]


def _rule(rule: str, flows: list[str], messages: Any, keys: list[str]) -> dict[str, Any]:
    return {"id": rule, "permission": "allow", "flows": flows, "messages": list(messages), "key_exprs": keys}
