"""One peer of a run: it opens its folder, connects, catches up, trains, states its weights, and serves its log.

Whatever ends it, the same command goes on: decided steps are in ``peers.log``, its own votes in ``votes.wal``, its
updates in ``ledger``. A peer without ``votes.wal`` signs nothing before the group has told it what it may have signed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gradless.collab.config import CollabConfig
from gradless.collab.learners.alone import OnePeer, OwnRewards, one_peer
from gradless.errors import BadInput
from gradless.peers import keys, own_data, own_rewards, prepare
from gradless.peers import manifest as manifests
from gradless.peers.agreed_part import AgreedPart
from gradless.peers.keys import Identity
from gradless.peers.manifest import Manifest
from gradless.peers.mixed_part import MixedPart
from gradless.peers.monitor import Monitor
from gradless.peers.node_files import LEDGER, LOSABLE, METRICS, RESULT, Metrics, Result, new_folder
from gradless.peers.part import Part
from gradless.peers.zenoh_link import ZenohLink
from gradless.runs.record import versions
from gradless.system import locks
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter
from gradless.system.side_files import make_room

FIRST_SECONDS: Final = 5.0
"""That a peer waits at its start for a quorum, before it asks those who are there."""
LINGER: Final = 2.5
"""Seconds that a peer stays when all are done, so that all hear of it."""
AWAITED: Final = 2.5
"""Seconds that a peer waits at its last step for f + 1 others with its weights, before it writes that it is done."""
POLL: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a peer chooses for itself."""

    manifest: Path
    identity: Path
    out: Path
    own: Mapping[str, Any] = field(default_factory=dict)
    """Its own rows: fields of `gradless.runs.config.OwnFiles`."""
    data: Path | None = None
    """Files of the manifest's task or data set."""
    model: str | None = None
    """Where the base model is, if not where the manifest says."""
    rewards: OwnRewards = field(default_factory=OwnRewards)
    """Its own reward functions, in place of the manifest's."""
    device: str = "cpu"
    listen: str | None = None
    serve: float | None = None
    """Seconds to serve the log when done; None: until all are done."""
    liar: str | None = None
    pace: float = 0.0
    """Least seconds of a step."""
    join: bool = False
    """Refuse to begin a run that has not begun."""


def run(settings: Settings, *, confirm: Callable[[Manifest], None], reporter: Reporter | None = None) -> Result:
    """Take part in a run until its last step; return the contents of ``result.json``.

    Args:
        settings: of this peer.
        confirm: has somebody compare the fingerprint; called before the first start in a folder.
        reporter: where progress goes.

    Raises:
        BadInput: keys, manifest, certificates, data, model or folder that cannot be used, a port that is taken, another
            process with this identity, or a disk that is full: nothing is sent that is not written.
    """
    reporter = reporter or Reporter()
    identity, data = keys.load(settings.identity), manifests.read_bytes(settings.manifest)
    manifest = manifests.parse(data, settings.manifest)
    manifest.number(identity)
    with (
        locks.claimed(settings.identity, option="--identity", say=reporter.warn),
        locks.claimed(settings.out, say=reporter.warn),
        new_folder(settings.out),
    ):
        copy = settings.out / manifests.FILE
        if not copy.exists():
            confirm(manifest)
        manifests.write(copy, data)
        make_room(settings.out, LOSABLE, reporter.say)
        with contextlib.ExitStack() as stack:
            return Node(settings, manifest, identity, reporter, stack).run()


class Node:
    """A peer in its folder.

    Args:
        settings: of this peer.
        manifest: of the run.
        identity: of this peer.
        reporter: where progress goes.
        stack: closes what is opened.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        identity: Identity,
        reporter: Reporter,
        stack: contextlib.ExitStack,
    ) -> None:
        self.settings, self.manifest, self.reporter, self.stack = settings, manifest, reporter, stack
        self.me, self.steps = manifest.number(identity), manifest.config.steps
        self.step, self.begun = 0, time.monotonic()
        self.agree_seconds: list[float] = []
        self.zero_shot: dict[str, float] = {}
        part: type[Part] = AgreedPart if manifest.agreed else MixedPart
        self.part = part(manifest, identity, settings.out)
        self.link = ZenohLink(manifest, identity, listen=settings.listen, limit=part.message_limit(manifest))
        stack.callback(self.link.close)
        self.metrics = Metrics(settings.out / METRICS)
        stack.callback(self.metrics.close)
        self.monitor = Monitor(manifest, self.me, settings.out, self.link, self.part.ring, reporter.warn)
        stack.callback(self.monitor.close)

    def run(self) -> Result:
        """Train and serve; see `run`."""
        self.one = self._built()
        self.stack.callback(self._close_ledger)
        if (texts := self.one.learner.texts) is not None:
            self.metrics.write(**own_rewards.resumed(texts, self.metrics.path, self.reporter.warn))
        self.reporter.say(
            f"{self.manifest.names[self.me]} is peer {self.me} of {len(self.manifest.peers)}, with {self.one.rows} "
            f"training rows; listening at {self.settings.listen or self.manifest.peers[self.me].endpoint}"
        )
        self._wait_for(self.manifest.quorum, FIRST_SECONDS)
        self.step = self.part.begin(self.one, self.link, liar=self.settings.liar, say=self.reporter.say)
        self.stack.callback(self.part.close)
        if self.settings.join and not self.step:
            raise BadInput(
                "nobody has decided a step yet, so there is nothing to join: begin with 'gradless peers run'"
            )
        self.monitor.begin(self.part, self.step)
        status = "done"
        try:
            self._train()
        except KeyboardInterrupt:
            status = "interrupted"
        self._write_result(status)
        if status == "done":
            with contextlib.suppress(KeyboardInterrupt):
                self._serve()
        return self.result

    def _write_result(self, status: Any) -> None:
        self.result = self._result(status)
        write_json(self.settings.out / RESULT, dict(self.result))

    # -- start --------------------------------------------------------------------------------------------------------

    def _built(self) -> OnePeer:
        """Load model and rows, and take the steps in the ledger."""
        config = self._config()
        settings = self.settings
        rewarded = bool(settings.rewards.names or config.reward)
        own = own_data.merged(self.manifest.config.own, settings.own, rewarded=rewarded)
        if own is None and config.model is not None and config.task is None:
            raise BadInput("the run has no task of its own: give your rows with --train")
        one = one_peer(config, self.me, own=own, rewards=settings.rewards, folder=settings.out)
        expected = self.manifest.contents.base_sha256
        if expected and one.base_sha256 != expected:
            one.close()
            if one.start == 0:
                (settings.out / LEDGER).unlink(missing_ok=True)  # it names these weights
            raise BadInput(
                f"the base model {config.model} has other weights here ({str(one.base_sha256)[:12]}) than in the "
                f"manifest ({expected[:12]}): load the same files, and give their place with --model"
            )
        return one

    def _config(self) -> CollabConfig:
        config, settings = self.manifest.config, self.settings
        folder = settings.manifest if settings.manifest.is_dir() else settings.manifest.parent
        model = settings.model or (prepare.located(config.model, folder) if config.model else None)
        data = str(settings.data.resolve()) if settings.data is not None else config.data
        return dataclasses.replace(config, model=model, data=data, device=settings.device)

    def _wait_for(self, count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(self.link.alive()) < count and time.monotonic() < end:
            time.sleep(POLL)

    # -- training -----------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        if self.step == 0:
            self._evaluate(0)
        rewarded = self.one.learner.texts is not None
        with self.reporter.job("train", self.steps, done=self.step, part="step") as show:
            while self.step < self.steps:
                first, begun, sent = self.step, time.monotonic(), self.link.sent
                self.step, loss = self.part.step(self.step)
                time.sleep(max(0.0, self.settings.pace - (time.monotonic() - begun)))
                self._note(first, loss, time.monotonic() - begun, self.link.sent - sent)
                words = "" if loss is None else f"reward {0.0 - loss:.4f}" if rewarded else f"loss {loss:.4f}"
                show(self.step, words)
                every = self.manifest.contents.check_every
                if first // every < self.step // every or self.step == self.steps:
                    self._state()
                self._compare()
                if first // self.manifest.config.eval_every < self.step // self.manifest.config.eval_every:
                    self._evaluate(self.step)
        if not self.monitor.has_stated(self.step):
            self._state()
        self._compare_at_the_end()

    def _note(self, step: int, loss: float | None, seconds: float, sent: int) -> None:
        """Write the line of a step, and of those whom it convicts."""
        facts = self.part.facts(step)
        self.monitor.decided(step, self.step, facts)
        agree, texts = facts.pop("agree_seconds", None), self.one.learner.texts
        if agree is not None:
            self.agree_seconds.append(agree)
        self.metrics.write(
            event="step",
            step=step,
            loss=loss,
            **facts,
            **(texts.of_step(step) if texts else {}),
            agree_seconds=agree,
            probe_seconds=None if agree is None else round(max(0.0, seconds - agree), 6),
            seconds=round(seconds, 6),
            bytes=sent,
        )
        if texts is not None and (sentence := texts.sentence(step)):
            self.reporter.warn(sentence)
        for ban in self.part.new_bans():
            self.metrics.write(event="banned", **ban)
            self.reporter.say(
                f"{self.manifest.names[ban['peer']]} {ban['what']}: evidence/{ban['evidence']}, banned from step "
                f"{ban['step']}"
            )

    def _state(self) -> None:
        """Say which weights this peer holds, and note what the others said."""
        sha256 = self.part.weights_sha256()
        others = self.monitor.state(self.step, sha256)
        self.metrics.write(event="hash", step=self.step, weights_sha256=sha256, others=others)

    def _compare(self) -> bool:
        """Rebuild the weights if f + 1 others hold others, whoever spoke first; returns whether they did.

        Raises:
            BadInput: the weights still differ.
        """
        if not self.manifest.agreed or (outvoted := self.monitor.outvoted()) is None:
            return False
        own, theirs = outvoted
        self._rebuild(own.step, own.sha256.hex(), theirs.hex())
        self.monitor.withdraw()
        self._state()
        return True

    def _compare_at_the_end(self) -> None:
        """Wait a little for f + 1 others that hold these weights, or hold others, if so many are there."""
        end = time.monotonic() + AWAITED
        while not self._compare() and self.manifest.agreed and not self.monitor.is_shared(self.step):
            if time.monotonic() >= end or len(self.link.alive()) <= self.manifest.f + 1:
                break
            time.sleep(POLL)

    def _rebuild(self, step: int, mine: str, theirs: str) -> None:
        """Take all steps again from the log, since f + 1 others held other weights at one of them.

        Raises:
            BadInput: the weights of that step still differ.
        """
        self.reporter.warn(
            f"step {step}: the weights are {mine[:12]}, and {theirs[:12]} at f + 1 others: rebuilding them from the log"
        )
        (self.settings.out / RESULT).unlink(missing_ok=True)  # it tells of these weights
        self._close_ledger()
        self.part.put_ledger_aside()
        texts = self.one.learner.texts
        self.one = self._built()
        if texts is not None and self.one.learner.texts is not None:
            self.one.learner.texts.load(texts.state())
        if self.part.rebuild(self.one, step, self.step) != theirs:
            raise BadInput(
                f"the weights at step {step} differ from those of f + 1 others even when taken anew from the log: "
                "check this machine's memory, and that torch and numba are intact"
            )

    def _evaluate(self, step: int) -> None:
        accuracy = self.part.accuracy(self.manifest.config.eval_rows if step < self.steps else None)
        scores = self._scores(accuracy)
        if step == 0:
            self.zero_shot = scores
        if accuracy is not None:
            self.metrics.write(event="eval", step=step, **{"accuracy": accuracy, **scores})

    def _scores(self, accuracy: float | None) -> dict[str, float]:
        """Return what an evaluation measured, by the names that other runs have for it."""
        texts = self.one.learner.texts
        if accuracy is None:
            return {}
        return {"accuracy": accuracy} if texts is None else texts.scores(accuracy)

    # -- end ----------------------------------------------------------------------------------------------------------

    def _result(self, status: Any) -> Result:
        steps = self.step - self.part.started
        seconds = time.monotonic() - self.begun
        accuracy = self.part.accuracy(None) if status == "done" else None
        ledger, texts = self.settings.out / LEDGER, self.one.learner.texts
        result = Result(
            status=status,
            steps=self.step,
            weights_sha256=self.part.weights_sha256(),
            digest=self.part.digest(),
            seconds=round(seconds, 3),
            bytes_per_step=round(self.link.sent / steps, 1) if steps else 0.0,
            agree_seconds=round(statistics.median(self.agree_seconds), 6) if self.agree_seconds else None,
            accuracy=accuracy,
            banned={self.manifest.names[peer]: step for peer, step in self.part.banned().items()},
            selected_step=self.step,
            data_sha256="",
            zero_shot=self.zero_shot,
            test=self._scores(accuracy),
            interval={},
            seconds_per_step=round(seconds / steps, 6) if steps else 0.0,
            ledger_bytes=ledger.stat().st_size if ledger.exists() else 0,
            versions=versions(),
        )
        return result if texts is None else {**result, **texts.counts()}  # type: ignore[typeddict-item]

    def _serve(self) -> None:
        """Serve the log until all peers that are not banned have all steps, or the time is over."""
        end = None if self.settings.serve is None else time.monotonic() + self.settings.serve
        waited = [self.manifest.names[peer] for peer in self.monitor.behind(self.steps)]
        if waited:
            self.reporter.say(f"done; serving the log to {', '.join(waited)} (stop with Ctrl-C)")
        self.monitor.phase = "serving"
        while self.monitor.behind(self.steps) and (end is None or time.monotonic() < end):
            time.sleep(POLL)
            self._compare_again()
        time.sleep(LINGER if end is None else max(0.0, min(LINGER, end - time.monotonic())))
        self._compare_again()

    def _compare_again(self) -> None:
        """Compare when the result is written already."""
        if self._compare():
            self._write_result("done")

    def _close_ledger(self) -> None:
        with contextlib.suppress(OSError):
            self.one.close()
