"""A small train-clean-100 with CPC's labels on a web server of this machine, in openslr.org's place."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simdist.download import fetching
from simdist.download.librispeech import LABELS, MIRRORS, PHONES, SUBSETS, TEST_SPLIT, TRAIN_SPLIT, Archive
from tests.support.packing_cases import SmallCorpus
from tests.support.web import Web, web_server

SUBSET = "train-clean-100"
TAR = f"/{SUBSET}.tar.gz"
COMMAND = ["librispeech", SUBSET, "--mirror", "openslr"]


def tar_of(subset: Path, name: str = SUBSET, more: dict[str, str] | None = None) -> bytes:
    """An archive as openslr.org's: LibriSpeech/NAME/… and LibriSpeech/SPEAKERS.TXT."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        tar.add(subset, f"LibriSpeech/{name}")
        for path, text in {"LibriSpeech/SPEAKERS.TXT": "; none\n", **(more or {})}.items():
            info = tarfile.TarInfo(path)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def archive_of(content: bytes, utterances: int, name: str = SUBSET) -> Archive:
    return Archive(name, len(content), hashlib.md5(content).hexdigest(), utterances, 1.0)


def zip_of(text: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("converted_aligned_phones.txt", text)
    return packed.getvalue()


@contextmanager
def published(corpus: SmallCorpus, patch: pytest.MonkeyPatch, content: bytes | None = None) -> Iterator[Web]:
    """A server that has the corpus as `content` (made if not given) and its labels; simdist.download knows no other."""
    content = content or tar_of(corpus.source / "small")
    patch.setitem(SUBSETS, SUBSET, archive_of(content, len(corpus.pcm)))
    patch.setattr(fetching, "FIRST_WAIT", 0.01)
    with web_server() as web:
        web.files[TAR] = content
        web.files["/train_split.txt"] = corpus.train_split.read_bytes()
        web.files["/test_split.txt"] = corpus.test_split.read_bytes()
        web.files["/phones.zip"] = zip_of(corpus.phones.read_text())
        for mirror in MIRRORS:
            patch.setitem(MIRRORS, mirror, web.url)
        for name, served in ((TRAIN_SPLIT, TRAIN_SPLIT), (TEST_SPLIT, TEST_SPLIT), (PHONES, "phones.zip")):
            patch.setitem(LABELS, name, (f"{web.url}/{served}",))
        yield web
