"""One HTTP connection to an API: who asks, whom it trusts, how long it waits, and which error an answer means."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import httpx

from redoubt.cluster.errors import (
    RETRYABLE,
    Busy,
    ClusterError,
    Conflict,
    Forbidden,
    NotFound,
    Rejected,
    Unauthorized,
    Unreachable,
)
from redoubt.errors import InvalidInput

TIMEOUT = httpx.Timeout(15.0, connect=5.0)
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 4, 0.25, 10.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Connection:
    """An API under one base URL. Safe to use from every thread.

    Args:
        url: scheme, host and, where there is one, the path under which the API lies.
        what: its name in messages.
        token_file: file with a bearer token, read anew for every request: a projected token is replaced as it ages.
        token: a bearer token that does not change; `token_file` wins.
        ca_file: certificates to trust instead of the system's.
        certificate: a client's certificate and key.
        headers, cookies: sent with every request.
        forbidden: what to do about a 403, in words.
        environment: whether a proxy named by the environment is used; not inside a cluster, and, like kubectl, not on
            the way to this machine itself.
        transport: a stand-in for the network.

    Raises:
        InvalidInput: for an URL or a file that cannot be used.
    """

    def __init__(
        self, url: str, *, what: str, token_file: Path | None = None, token: str = "", ca_file: Path | None = None,
        certificate: tuple[str, str] | None = None, verify: bool = True, headers: dict[str, str] | None = None,
        cookies: str = "", forbidden: str = "", environment: bool = False, timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.BaseTransport | None = None, sleep: Callable[[float], None] = time.sleep,
    ):
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(f"{what}: {url!r} is no address: it must begin with http:// or https://")
        self.url, self.what = url.rstrip("/"), what
        self._token_file, self._token, self._sleep, self._forbidden = token_file, token, sleep, forbidden
        headers = {"Accept": "application/json", **(headers or {}), **({"Cookie": cookies} if cookies else {})}
        try:
            trust: ssl.SSLContext | bool = False
            if url.startswith("https://"):   # reading the system's authorities takes a while
                trust = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
                if not verify:
                    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
                if certificate:
                    trust.load_cert_chain(*certificate)
            self._client = httpx.Client(
                base_url=self.url, verify=trust, headers=headers, timeout=timeout,
                trust_env=environment and not _is_here(url), transport=transport, follow_redirects=False,
            )
        except (OSError, ssl.SSLError, httpx.InvalidURL) as error:
            raise InvalidInput(f"{what}: {ca_file or url} cannot be used: {error}") from None

    def close(self) -> None:
        self._client.close()

    def call(
        self, method: str, path: str, *, params: dict | None = None, body: dict | list | None = None,
        content_type: str = "application/json", files: dict | None = None, attempts: int | None = None,
    ) -> dict:
        """Ask once, or again while an answer is missing, and return the answer's JSON object.

        Args:
            attempts: how often at most. By default several times where asking twice does no harm, which is for GET,
                and once for anything else.

        Raises:
            ClusterError: one of its kinds, with what the server said.
        """
        response = self._ask(method, path, attempts, params=_plain(params), files=files,
                             content=None if body is None else json.dumps(body).encode(),
                             headers={} if body is None else {"Content-Type": content_type})
        if not response.content:
            return {}
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Rejected(f"{self.what} at {self.url} answers {method} {path} with "
                           f"{response.headers.get('content-type', 'something')} that is no JSON object: is this its "
                           f"address? A login page in front of it needs a token or a cookie")
        return found

    def text(self, path: str, *, params: dict | None = None, attempts: int | None = None) -> str:
        """Like `call` with GET, for an answer that is plain text."""
        return self._ask("GET", path, attempts, params=_plain(params), headers={"Accept": "*/*"}).text

    def _ask(self, method: str, path: str, attempts: int | None, **request) -> httpx.Response:
        attempts = attempts or (ATTEMPTS if method == "GET" else 1)
        for attempt in range(1, attempts + 1):
            try:
                return self._once(method, path, **request)
            except RETRYABLE as error:
                if attempt == attempts:
                    raise
                wait = max(getattr(error, "after", 0.0), FIRST_WAIT * 2 ** (attempt - 1))
                self._sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, **request) -> httpx.Response:
        request["headers"] = {**request.get("headers", {}), **self._authorization()}
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._silence(error) from None
        if response.is_success:
            return response
        raise self._fault(response, f"{method} {path}")

    def _authorization(self) -> dict[str, str]:
        token = self._token
        if self._token_file is not None:
            try:
                token = self._token_file.read_text().strip()
            except OSError as error:
                raise Unauthorized(f"{self.what}: the token file {self._token_file} cannot be read "
                                   f"({error.strerror}): is the token mounted?") from None
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _silence(self, error: httpx.TransportError) -> Unreachable:
        text = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            text = "no answer in time"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            text += "; name the authority that signed it"
        fault = Unreachable(f"{self.what} at {self.url} cannot be reached: {text}")
        fault.sent = not isinstance(error, _NEVER_SENT)
        return fault

    def _fault(self, response: httpx.Response, doing: str) -> ClusterError:
        status, said = response.status_code, _said(response)
        where = f"{self.what} at {self.url}"
        if status == 401 or (status in (302, 303, 307) and "location" in response.headers):
            return Unauthorized(f"{where} does not accept the credentials ({said or status}): the token is missing, "
                                "expired or for another audience; get a fresh one")
        if status == 403:
            remedy = f"; {self._forbidden}" if self._forbidden else ""
            return Forbidden(f"{where} forbids {doing}: {said or 'no reason given'}{remedy}")
        if status == 404:
            return NotFound(f"{where}: {said or doing + ' is not there'}")
        if status == 409:
            return Conflict(f"{where}: {said or doing + ' conflicts'}")
        if status == 429 or status >= 500:
            return Busy(f"{where} answered {status} to {doing}: {said or 'no reason given'}", status=status,
                        after=_seconds(response.headers.get("retry-after")))
        fault = Rejected(f"{where} refuses {doing}: {said or status}")
        fault.status = status
        return fault


def _is_here(url: str) -> bool:
    """Whether an address is this machine's own: a port-forward, or kind's API server."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(response: httpx.Response) -> str:
    """The server's own words in one line: both APIs answer with a `message`, KFP's gateway with an `error`, too."""
    try:
        found = response.json()
    except ValueError:
        found = response.text
    if isinstance(found, dict):
        found = found.get("message") or found.get("error_message") or found.get("error") or found.get("error_details")
    lines = str(found or "").strip().splitlines()
    first = lines[0] if lines else ""
    return "" if first.startswith("<") else first[:400]   # a proxy's HTML page says nothing


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:   # a date: the server's clock is not ours
        return 1.0


def _plain(params: dict | None) -> dict | None:
    return None if params is None else {key: value for key, value in params.items() if value not in (None, "")}
