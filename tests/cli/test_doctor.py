"""gradless doctor: what it reports and advises, when it calls something broken, and that it sends nothing unasked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from gradless import kernels
from gradless.cli import diagnosis, main
from gradless.cli.doctor import show
from gradless.kernels import reference
from gradless.lm import assets
from gradless.system import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own, and an environment without settings."""
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))
    for name in ("GRADLESS_KERNELS", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def section(name: str) -> dict[str, diagnosis.Line]:
    return {line.name: line for line in diagnosis.SECTIONS[name]()}


def test_all_sections_are_there_and_nothing_is_broken(tmp_path):
    ran = CliRunner().invoke(main, ["doctor", "--json", str(tmp_path / "deep" / "doctor.json")])
    assert ran.exit_code == 0, ran.output
    report = json.loads((tmp_path / "deep" / "doctor.json").read_text())
    assert set(report) == {*diagnosis.SECTIONS, "advice", "broken"}
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["kernels"]["cpu self-test"] == "same bits"
    assert report["cache"]["folder"] == str(tmp_path / "cache")
    assert report["broken"] == []
    assert "machine cores" in ran.output
    assert ran.output.rstrip().splitlines()[-1].startswith(("all is well", "advice: "))
    assert not (tmp_path / "cache").exists()  # looking makes nothing


def test_nothing_is_sent_unless_it_is_asked_for(monkeypatch):
    def connect(*args):
        raise AssertionError("diagnose opened a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    lines = diagnosis.diagnose()
    assert [line.value for line in lines if line.section == "hub"] == ["not tried (--online tries it)"]
    assert not any(line.broken for line in lines)


# ---------------------------------------------------------------------------------------------------------------
# kernels


def test_a_kernel_with_other_bits_is_broken_and_ends_with_exit_code_1(monkeypatch, tmp_path):
    """A sign that is stuck restores perfectly and learns nothing."""

    def stuck(out, p, region, program, mask):
        reference.sweep(out, p, region, program, mask)
        out.view(-1)[0] += 1

    backend = SimpleNamespace(sweep=stuck, __name__="gradless.kernels.cpu")
    monkeypatch.setattr(kernels, "backend", lambda device: backend)
    assert diagnosis.self_test() == "rademacher in float32"
    ran = CliRunner().invoke(main, ["doctor", "--json", str(tmp_path / "doctor.json")])
    assert ran.exit_code == 1
    assert "FAILED: rademacher in float32" in ran.output
    assert "broken: Numba gives other bits than the reference (rademacher in float32)" in ran.output
    assert json.loads((tmp_path / "doctor.json").read_text())["broken"] == ["kernels: cpu self-test"]


def test_signs_that_are_stuck_everywhere_are_noticed(monkeypatch):
    """Also where kernel and reference agree."""
    from gradless import rng

    monkeypatch.setattr(kernels, "backend", lambda device: None)
    monkeypatch.setattr(rng, "rademacher", lambda key, leaf, start, count, device="cpu": torch.ones(count))
    assert diagnosis.self_test() == "signs that are not balanced"


def test_kernels_that_are_off_or_absent_are_advised_on(monkeypatch):
    monkeypatch.setenv("GRADLESS_KERNELS", "reference")
    line = section("kernels")["cpu"]
    assert line.value == "torch reference"
    assert "unset it" in line.advice
    monkeypatch.delenv("GRADLESS_KERNELS")
    monkeypatch.setattr(kernels, "backend", lambda device: None)
    line = section("kernels")["cpu"]
    assert "pip install 'gradless[cpu]'" in line.advice
    assert not line.broken


# ---------------------------------------------------------------------------------------------------------------
# machine


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(diagnosis, "cores", lambda: 3)
    assert "64 threads on 3 cores" in section("machine")["threads"].advice
    assert "OMP_NUM_THREADS=3" in section("machine")["threads"].advice
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert section("machine")["threads"].advice == ""


def test_the_share_of_a_container_counts(monkeypatch, tmp_path):
    for text, cores in (("150000 100000\n", 2), ("max 100000\n", 8), ("", 8)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(diagnosis, "Path", lambda path: tmp_path / "cpu.max")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        assert diagnosis.cores() == cores


def test_an_unused_gpu_is_pointed_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "built without CUDA" in section("machine")["cuda"].advice
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert section("machine")["cuda"].advice == ""


def test_cuda_devices_are_listed_with_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10e9 * (index + 1), 24e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    lines = section("machine")
    assert lines["cuda:0"].value == "Card 0, 10.0 of 24.0 GB free"
    assert lines["cuda:1"].value == "Card 1, 20.0 of 24.0 GB free"


# ---------------------------------------------------------------------------------------------------------------
# cache


def test_models_sizes_and_what_was_left_behind(own_cache):
    kept = assets.cached_folder(assets.ASSETS["smollm2-135m"], "smollm2-135m", own_cache)
    kept.mkdir(parents=True)
    (kept / "weights").write_bytes(bytes(3_000_000))
    old, new = (own_cache / "gguf" / f"{cache.TEMPORARY}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    day_ago = time.time() - 1.1 * cache.STALE_SECONDS
    os.utime(old, (day_ago, day_ago))
    lines = section("cache")
    assert lines["models"].value == "smollm2-135m"
    assert lines["size"].value == "3 MB in 1 files"
    assert lines["left behind"].value == "1"
    assert f"rm -r {old}" in lines["left behind"].advice
    assert str(new) not in lines["left behind"].advice


def test_little_space_and_a_folder_that_cannot_be_written(monkeypatch):
    assert section("cache")["free"].advice == "" or shutil.disk_usage("/").free < diagnosis.LOW_DISK_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.2e9))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    lines = section("cache")
    assert "only 1.2 GB are free" in lines["free"].advice
    assert "point GRADLESS_CACHE" in lines["writable"].advice


# ---------------------------------------------------------------------------------------------------------------
# versions and extras

ASKED = [
    *("torch>=2.6", "rich>=13.0", 'numba>=0.61; extra == "cpu"', "peft>=0.19; extra == 'lm'"),
    *("transformers>=5.0; extra == 'lm'", "gradless[lm]; extra == 'demo'", "matplotlib>=3.9; extra == 'demo'"),
]


@pytest.fixture
def installed(monkeypatch):
    """A table of installed versions in place of the real one."""
    table: dict[str, str] = {"torch": "2.13.0+cpu", "rich": "15.0.0"}
    monkeypatch.setattr(metadata, "requires", lambda name: ASKED)
    monkeypatch.setattr(diagnosis, "_version", table.get)
    return table


def test_what_gradless_needs_must_be_there_and_new_enough(installed):
    assert not any(line.broken for line in section("versions").values())
    installed["torch"] = "2.5.1"
    line = section("versions")["torch"]
    assert line.broken
    assert line.advice == "torch 2.5.1 is too old: pip install -U 'torch>=2.6'"
    del installed["torch"]
    line = section("versions")["torch"]
    assert line.broken
    assert line.advice == "gradless needs torch: pip install 'torch>=2.6'"


def test_extras_are_whole_or_say_what_is_missing(installed):
    installed["peft"] = "0.19.1"
    lines = section("extras")
    assert set(lines) == {"cpu", "lm", "demo"}
    assert lines["cpu"].value == "no numba: pip install 'gradless[cpu]'"
    assert lines["lm"].value == "no transformers: pip install 'gradless[lm]'"
    assert not any(line.advice or line.broken for line in lines.values())
    installed.update(transformers="4.57.1", numba="0.61.0")
    lines = section("extras")
    assert lines["cpu"].value == "installed"
    assert lines["lm"].value == "old transformers: pip install -U 'gradless[lm]'"
    assert lines["lm"].advice == "transformers of gradless[lm] are too old: pip install -U 'gradless[lm]'"
    installed["transformers"] = "5.0.0"
    assert section("extras")["lm"].value == "installed"


def test_one_section_that_fails_does_not_hide_the_others(monkeypatch):
    def fails():
        raise ImportError("libtorch_cpu.so: cannot open shared object file\nmore")
        yield

    monkeypatch.setitem(diagnosis.SECTIONS, "machine", fails)
    lines = diagnosis.diagnose()
    (line,) = (line for line in lines if line.section == "machine")
    assert line.broken
    assert line.value == "ImportError: libtorch_cpu.so: cannot open shared object file"
    assert {line.section for line in lines} == set(diagnosis.SECTIONS)


def test_a_torch_that_cannot_be_imported_is_reported(monkeypatch):
    for name in [name for name in sys.modules if name == "torch" or name.startswith("gradless.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = diagnosis.diagnose()
    broken = {line.section for line in lines if line.broken}
    assert {"machine", "kernels"} <= broken
    assert any(line.section == "extras" for line in lines)


# ---------------------------------------------------------------------------------------------------------------
# the hub


@pytest.fixture
def server():
    """A small server; ``status`` and ``wait`` say how it answers."""

    class Handler(BaseHTTPRequestHandler):
        status, wait, seen = 200, 0.0, []

        def do_HEAD(self):
            self.seen.append(self.path)
            time.sleep(self.wait)
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    http_server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield types.SimpleNamespace(url=f"http://127.0.0.1:{http_server.server_port}", handler=Handler)
    http_server.shutdown()
    http_server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def hub_line(server, monkeypatch, timeout=5.0) -> diagnosis.Line:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    (line,) = diagnosis.hub(online=True, timeout=timeout)
    return line


def test_a_hub_that_answers(server, monkeypatch):
    line = hub_line(server, monkeypatch)
    assert line.value.startswith("reachable, ")
    assert line.advice == ""
    assert len(server.handler.seen) == 1


def test_a_hub_that_refuses(server, monkeypatch):
    server.handler.status = 503
    line = hub_line(server, monkeypatch)
    assert line.value == "answers with 503"
    assert "check HF_ENDPOINT" in line.advice
    assert not line.broken


def test_a_hub_that_does_not_answer_in_time(server, monkeypatch):
    server.handler.wait = 1.0
    begun = time.perf_counter()
    line = hub_line(server, monkeypatch, timeout=0.2)
    assert time.perf_counter() - begun < 1.0
    assert "cannot be reached" in line.value
    assert "gradless list models" in line.advice


def test_a_hub_that_is_not_there(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    line = hub_line(types.SimpleNamespace(url=f"http://127.0.0.1:{port}"), monkeypatch)
    assert "refused" in line.value
    assert not line.broken
    line = hub_line(types.SimpleNamespace(url="not a url"), monkeypatch)
    assert "cannot be reached" in line.value


def test_a_hub_that_was_switched_off_is_not_asked(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = hub_line(server, monkeypatch)
    assert line.value == "switched off by HF_HUB_OFFLINE"
    assert server.handler.seen == []


# ---------------------------------------------------------------------------------------------------------------
# what is shown

LINES = [
    diagnosis.Line("torch", "2.13.0", section="versions"),
    diagnosis.Line("cpu", "torch reference", "numba is missing: install it", section="kernels"),
    diagnosis.Line("cpu self-test", "FAILED: [gaussian]", "other bits: report it", broken=True, section="kernels"),
]


def test_plain_lines(capsys):
    show(LINES)
    assert capsys.readouterr().out.splitlines() == [
        "versions torch         2.13.0",
        "kernels cpu            torch reference",
        "kernels cpu self-test  FAILED: [gaussian]",
        "advice: numba is missing: install it",
        "broken: other bits: report it",
    ]


def test_a_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    show(LINES)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()]
    assert ["kernels", "cpu", "torch reference"] in rows
    assert "FAILED: [gaussian]" in out
    assert out.splitlines()[-1] == "broken: other bits: report it"
    show(LINES[:1])
    assert capsys.readouterr().out.splitlines()[-1] == "all is well"
