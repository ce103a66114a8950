"""Datasets from elsewhere: fetched once, verified, unpacked safely, or refused without a trace."""

import datetime
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipelines.parameters import RunParameters
from redoubt.data.remote import fetch, s3_request, signature
from redoubt.errors import InvalidInput


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.array([0, 1, 0, 1]))
    return out.getvalue()


def tar(*names: str, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"png"))
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("cats/1.png", "png")
        archive.writestr("dogs/1.png", "png")
    return out.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def answering(content: bytes, calls: list | None = None) -> httpx.MockTransport:
    def handle(request):
        if calls is not None:
            calls.append(request)
        return httpx.Response(200, content=content)

    return httpx.MockTransport(handle)


@pytest.mark.parametrize("name, content, kind, inside", [
    ("d.npz", npz(), "npz", "d.npz"),
    ("d.tar.gz", tar("cats/1.png", "dogs/1.png"), "folder", "cats/1.png"),
    ("d.tgz", tar("pictures/cats/1.png", "pictures/dogs/1.png"), "folder", "cats/1.png"),
    ("d.zip", zipped(), "folder", "dogs/1.png"),
])
def test_a_file_is_fetched_once(tmp_path, name, content, kind, inside):
    calls, dataset = [], f"https://host/{name}#sha256={sha(content)}"
    for _ in range(2):
        found = fetch(dataset, tmp_path, answering(content, calls))
    assert len(calls) == 1
    got, _, path = found.partition(":")
    assert got == kind
    assert (path.endswith(inside) if kind == "npz" else
            (Path(path) / inside).read_text() == "png")


def test_another_content_is_refused_and_nothing_kept(tmp_path):
    with pytest.raises(InvalidInput, match="has changed, or was cut"):
        fetch(f"https://host/d.npz#sha256={'0' * 64}", tmp_path, answering(npz()))
    assert list((tmp_path / "remote").iterdir()) == []


@pytest.mark.parametrize("content", [tar("../out.png"), tar("/etc/out.png"), tar(link="/etc/passwd"), b"no archive"],
                         ids=["outside", "absolute", "link", "no archive"])
def test_an_archive_that_reaches_out_is_refused(tmp_path, content):
    try:
        found = fetch(f"https://host/d.tar.gz#sha256={sha(content)}", tmp_path, answering(content))
    except InvalidInput as error:
        assert "cannot be unpacked" in str(error)
    else:   # an absolute name is taken as one below the folder
        assert str(tmp_path) in found
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("status, says", [(403, "may not be read"), (404, "nothing is there"), (500, "try again")])
def test_a_server_that_refuses(tmp_path, status, says):
    transport = httpx.MockTransport(lambda _: httpx.Response(status))
    with pytest.raises(InvalidInput, match=says):
        fetch(f"https://host/d.npz#sha256={'0' * 64}", tmp_path, transport)


KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"   # of Amazon's documentation


def test_a_request_is_signed_as_in_amazons_own_example():
    """`Example: GET Object` of the page that `s3_request` names."""
    headers = {"host": "examplebucket.s3.amazonaws.com", "range": "bytes=0-9", "x-amz-date": "20130524T000000Z",
               "x-amz-content-sha256": sha(b"")}
    assert signature("/test.txt", headers, "us-east-1", KEY, SECRET).endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_an_object_of_amazons_is_asked_for_by_its_buckets_host(monkeypatch):
    for name, value in (("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "eu-west-1")):
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    url, headers = s3_request("s3://bucket/a b.npz", datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC))
    assert url == "https://bucket.s3.eu-west-1.amazonaws.com/a%20b.npz"
    assert f"Credential={KEY}/20130524/eu-west-1/s3/aws4_request" in headers["Authorization"]


def test_a_store_of_ones_own_is_asked_by_path(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    calls, content = [], npz()
    fetch(f"s3://bucket/a/d.npz#sha256={sha(content)}", tmp_path, answering(content, calls))
    assert str(calls[0].url) == "http://minio:9000/bucket/a/d.npz"
    assert "authorization" not in calls[0].headers


def test_an_artifact_of_a_registry_that_wants_a_token(tmp_path):
    content = npz()
    layer = {"digest": f"sha256:{sha(content)}", "annotations": {"org.opencontainers.image.title": "d.npz"}}
    manifest = json.dumps({"layers": [layer]}).encode()

    def handle(request):
        if request.url.path == "/token":
            assert request.url.params["scope"] == "repository:team/data:pull"
            return httpx.Response(200, json={"token": "t"})
        if request.headers.get("authorization") != "Bearer t":
            return httpx.Response(401, headers={"www-authenticate": 'Bearer realm="https://auth/token",'
                                                                    'scope="repository:team/data:pull"'})
        return httpx.Response(200, content=manifest if "manifests" in request.url.path else content)

    dataset = f"oci://registry.example.org/team/data@sha256:{sha(manifest)}"
    assert fetch(dataset, tmp_path, httpx.MockTransport(handle)).endswith("d.npz")


@pytest.mark.parametrize("dataset", [
    "https://host/d.npz", "https://host/d.exe#sha256=" + "0" * 64, "s3://bucket/d.npz#sha256=12", "oci://host/name:tag",
])
def test_without_a_checksum_it_is_no_dataset(dataset):
    with pytest.raises(InvalidInput, match="checksum"):
        RunParameters(dataset=dataset)
