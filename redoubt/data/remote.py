"""Data from elsewhere: one file, named by its address and its checksum, fetched once and verified before it is opened.

    https://host/pictures.tar.gz#sha256=...     an archive as `folder:` expects it, or an .npz
    s3://bucket/pictures.npz#sha256=...         the same from Amazon or, with AWS_ENDPOINT_URL, from a store like it
    oci://registry/name@sha256:...              the first layer of an artifact in a container registry

The checksum is part of the name, so whoever has the name has the data, and a cache that goes by it cannot be stale.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from redoubt.errors import InvalidInput
from redoubt.names import REMOTE

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
MOST_BYTES = 256 * 2**30   # of an archive's content: a small one may unpack to anything
_EMPTY = hashlib.sha256(b"").hexdigest()
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def fetch(dataset: str, root: Path, transport: httpx.BaseTransport | None = None) -> str:
    """Bring a remote dataset below `root`, unless it is there; returns `folder:PATH` or `npz:PATH`.

    Raises:
        InvalidInput: when it cannot be had, is not what its checksum says, or cannot be unpacked. Nothing is left.
    """
    match = REMOTE.fullmatch(dataset)
    if not match:
        raise InvalidInput(f"{dataset!r}: write https://HOST/FILE#sha256=DIGEST, s3://BUCKET/FILE#sha256=DIGEST (.npz, "
                           ".zip, .tar or .tar.gz) or oci://REGISTRY/NAME@sha256:DIGEST")
    place = root / "remote" / hashlib.sha256(dataset.encode()).hexdigest()[:32]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as folder:
            content = Path(folder) / "content"
            content.mkdir()
            try:
                with httpx.Client(timeout=TIMEOUT, follow_redirects=True, transport=transport) as client:
                    file, digest = _download(client, dataset, Path(folder))
            except httpx.HTTPError as error:
                raise InvalidInput(f"{dataset}: {error}") from None
            _verify(dataset, file, digest)
            _unpack(dataset, file, content)
            content.replace(place)
    inside = list(place.iterdir())
    if len(inside) == 1 and inside[0].suffix == ".npz":
        return f"npz:{inside[0]}"
    return f"folder:{inside[0] if len(inside) == 1 and inside[0].is_dir() else place}"   # an archive of one folder


def _download(client: httpx.Client, dataset: str, folder: Path) -> tuple[Path, str]:
    """The file and what its sha256 must be."""
    if dataset.startswith("oci://"):
        return _from_registry(client, dataset, folder)
    address, _, digest = dataset.partition("#sha256=")
    file = folder / Path(urlsplit(address).path).name
    headers = {}
    if address.startswith("s3://"):
        address, headers = s3_request(address)
    with _get(client, address, dataset, headers) as answer, file.open("wb") as out:
        for part in answer.iter_bytes(2**20):
            out.write(part)
    return file, digest


@contextmanager
def _get(client: httpx.Client, address: str, dataset: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    with client.stream("GET", address, headers=headers) as answer:
        if not answer.is_success:
            hint = {401: "credentials are missing or wrong", 403: "it may not be read with these credentials",
                    404: "nothing is there"}.get(answer.status_code, "try again later")
            raise InvalidInput(f"{dataset}: the server answered {answer.status_code}: {hint}")
        yield answer


def _from_registry(client: httpx.Client, dataset: str, folder: Path) -> tuple[Path, str]:
    host, _, rest = dataset.removeprefix("oci://").partition("/")
    name, _, digest = rest.partition("@sha256:")
    base, headers = f"https://{host}/v2/{name}", {"Accept": _MANIFESTS}
    address = f"{base}/manifests/sha256:{digest}"
    answer = client.get(address, headers=headers)
    if answer.status_code == 401:
        headers |= _registry_token(client, answer.headers.get("www-authenticate", ""))
    with _get(client, address, dataset, headers) as answer:
        text = answer.read()
    if hashlib.sha256(text).hexdigest() != digest:
        raise InvalidInput(f"{dataset}: the registry answered with another manifest")
    layer = next(iter(answer.json().get("layers") or []), None)
    if layer is None:
        raise InvalidInput(f"{dataset}: the artifact has no layer")
    title = Path((layer.get("annotations") or {}).get("org.opencontainers.image.title", "content.tar.gz")).name
    blob = f"{base}/blobs/{layer['digest']}"
    with _get(client, blob, dataset, headers) as answer, (folder / title).open("wb") as out:
        for part in answer.iter_bytes(2**20):
            out.write(part)
    return folder / title, layer["digest"].removeprefix("sha256:")


def _registry_token(client: httpx.Client, challenge: str) -> dict[str, str]:
    """What a registry's challenge asks for; REDOUBT_OCI_USER and REDOUBT_OCI_PASSWORD may be needed for it."""
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    user = os.environ.get("REDOUBT_OCI_USER")
    login = httpx.BasicAuth(user, os.environ.get("REDOUBT_OCI_PASSWORD", "")) if user else None
    if "realm" not in asked:
        return {}
    answer = client.get(asked.pop("realm"), params=asked, auth=login)
    found = answer.json() if answer.is_success else {}
    token = found.get("token") or found.get("access_token")
    return {"Authorization": f"Bearer {token}"} if token else {}


def s3_request(address: str, now: datetime.datetime | None = None) -> tuple[str, dict[str, str]]:
    """The URL of an object and the headers that sign the request for it (AWS Signature Version 4), with the usual
    AWS_* variables; unsigned where there are no keys.

    See https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    parts = urlsplit(address)
    bucket, path = parts.netloc, quote(parts.path, safe="/-_.~")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        base, path = endpoint.rstrip("/"), f"/{bucket}{path}"
    else:
        base = f"https://{bucket}.s3.{region}.amazonaws.com"
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not (key and secret):
        return base + path, {}
    stamp = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": urlsplit(base).netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": stamp}
    if os.environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = os.environ["AWS_SESSION_TOKEN"]
    headers["Authorization"] = signature(path, headers, region, key, secret)
    return base + path, headers


def signature(path: str, headers: dict[str, str], region: str, key: str, secret: str) -> str:
    """The Authorization header of a GET with these headers, `x-amz-date` and `x-amz-content-sha256` among them."""
    stamp = headers["x-amz-date"]
    signed, scope = ";".join(sorted(headers)), f"{stamp[:8]}/{region}/s3/aws4_request"
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = f"GET\n{path}\n\n{lines}\n{signed}\n{headers['x-amz-content-sha256']}"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    derived = f"AWS4{secret}".encode()
    for step in (stamp[:8], region, "s3", "aws4_request"):
        derived = hmac.new(derived, step.encode(), hashlib.sha256).digest()
    made = hmac.new(derived, to_sign.encode(), hashlib.sha256).hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={signed},Signature={made}"


def _verify(dataset: str, file: Path, digest: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != digest:
        raise InvalidInput(f"{dataset}: its sha256 is {found}, not {digest}: it has changed, or was cut")


def _unpack(dataset: str, file: Path, out: Path) -> None:
    """Move an .npz or unpack an archive; nothing may land outside `out`, be a link or a device."""
    try:
        if file.suffix == ".npz":
            shutil.move(file, out)
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _bound(dataset, sum(entry.file_size for entry in archive.infolist()))
                archive.extractall(out)
        else:
            with tarfile.open(file) as archive:
                _bound(dataset, sum(entry.size for entry in archive))
                archive.extractall(out, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InvalidInput(f"{dataset} cannot be unpacked: {error}") from None


def _bound(dataset: str, total: int) -> None:
    if total > MOST_BYTES:
        raise InvalidInput(f"{dataset} would unpack to {total / 2**30:.0f} GiB, more than {MOST_BYTES / 2**30:.0f}")
