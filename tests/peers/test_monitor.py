"""What a peer is told while it trains, and how often."""

from __future__ import annotations

from types import SimpleNamespace

from gradless.peers.monitor import Monitor
from peers_helpers import identities, manifest_of


def test_a_peer_of_other_runs_is_warned_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "_run", lambda self: None)
    manifest = manifest_of(identities(tmp_path / "who"))
    link, warned = SimpleNamespace(strangers={}), list[str]()
    monitor = Monitor(manifest, 0, tmp_path, link, None, warned.append)  # type: ignore[arg-type]
    for look in range(100):
        link.strangers = {"ben": f"{look:032x}"}
        monitor._warn_of_strangers()
    assert [line.split(" (")[0] for line in warned] == ["ben has another manifest"]
    link.strangers["cleo"] = "0" * 32
    monitor._warn_of_strangers()
    assert [line.split(" (")[0] for line in warned[1:]] == ["cleo has another manifest"]
    assert len(monitor._warned) == 2
    monitor.close()
