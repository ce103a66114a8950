"""From a request's headers to a principal, and from a path to the role that it takes. Closed unless opened here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from redoubt.errors import InvalidInput
from serving.problems import Busy, Forbidden, Unauthorized
from serving.security.keys import PREFIX, ROLES, KeyStore
from serving.security.limits import RateLimits
from serving.security.oidc import Tokens
from serving.settings import Settings

# For probes; the files of the pages, which hold no data; and the way to a model's page.
_PUBLIC = re.compile(r"^(/|/models/[^/]+|/v2/health/(live|ready)|/live/[\w-]+\.(html|css|js|svg)|/ui/[\w-]+\.css)$")
_IMPLIED = {"operate": {"read"}, "admin": set(ROLES)}
_FEEDBACK = re.compile(r"^/v2/models/[^/]+/feedback$")
_LOCAL_HOST = re.compile(rb"^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|testserver)(:\d+)?$")
_READING = ("GET", "HEAD")
_PUBLIC_IPV6 = ip_network("2000::/3")   # global unicast; those of IPv4 hosts behind a translator lie elsewhere


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks.

    Attributes:
        name: as the audit log shows it, and by which clients are told apart.
        roles: what it may do, implied ones included.
        rate: requests a second; None for the server's setting.
        known: whether it proved who it is; otherwise its address stands for it.
    """

    name: str
    roles: frozenset[str]
    rate: float | None = None
    known: bool = True


def needed_role(method: str, path: str) -> str | None:
    """The role that a request takes; None for what is open to all. What nobody thought of takes `operate`."""
    if method in _READING and _PUBLIC.match(path):
        return None
    if path == "/v2" or path.startswith("/v2/"):
        return "feedback" if _FEEDBACK.match(path) else "predict"
    return "read" if method in _READING else "operate"


def allowed(roles) -> frozenset[str]:
    """Roles with those that they imply."""
    return frozenset(roles).union(*(_IMPLIED.get(role, set()) for role in roles))


class Access:
    """The door.

    Raises:
        InvalidInput: when the settings would open the server to strangers.
    """

    def __init__(self, settings: Settings):
        self.keys = KeyStore(settings.keys_file or settings.home / "keys.json")
        if settings.keys_file is not None and not settings.keys_file.is_file():
            raise InvalidInput(f"REDOUBT_KEYS_FILE={settings.keys_file}: there is no such file")
        self.tokens = Tokens(settings) if settings.oidc_issuer else None
        self._guarded_once = bool(len(self.keys)) or self.tokens is not None
        self._proxied = settings.trusted_proxy
        if not self.guarded and not self._proxied and not _is_loopback(settings.host):
            raise InvalidInput(
                f"REDOUBT_HOST={settings.host} would let strangers in: there are no keys. Make one with `python -m "
                "serving keys add NAME --role ...`, or set REDOUBT_TRUSTED_PROXY=true if a proxy in front decides who "
                "may come"
            )
        self._proxies = [ip_network(network) for network in settings.proxies]
        self._limits = RateLimits(settings.rate_limit, settings.rate_burst)
        # Behind a proxy that knows nobody by name, what changes the server stays closed: only a key opens it.
        roles = ROLES if not self._proxied else {"predict", "feedback", "read"}
        self._anyone = allowed(roles)

    @property
    def guarded(self) -> bool:
        """Whether a key or token is asked for. The first key that is made closes the door; nothing opens it again."""
        self._guarded_once = self._guarded_once or bool(len(self.keys))
        return self._guarded_once

    async def identify(self, headers: dict[bytes, bytes], address: str) -> Principal:
        """Who asks.

        Raises:
            Unauthorized: when nobody that is known does.
        """
        if not self.guarded:
            return Principal(name=_household(address), roles=self._anyone, known=False)
        token = _token(headers)
        if not token:
            raise Unauthorized("an API key is needed: send it as `Authorization: Bearer KEY`")
        if token.startswith(PREFIX + "_"):
            key = self.keys.find(token)
            if key is None:
                raise Unauthorized("this API key is unknown, revoked or expired")
            return Principal(name=key.name, roles=allowed(key.roles), rate=key.rate)
        if self.tokens is None:
            raise Unauthorized("this API key is unknown, revoked or expired")
        name, roles = await self.tokens.verify(token)
        return Principal(name=name, roles=allowed(roles))

    def check(self, principal: Principal, method: str, path: str, headers: dict[bytes, bytes]) -> None:
        """Let the request through or not.

        Raises:
            Forbidden: when the principal lacks the role, or a page of another site asks through somebody's browser.
            Busy: when it has made too many requests.
        """
        role = needed_role(method, path)
        if role not in principal.roles:
            raise Forbidden(f"this takes the role {role!r}")
        if not principal.known:
            self._same_site(method, headers)
        wait = self._limits.take(principal.name, principal.rate)
        if wait:
            raise Busy("too many requests from this client", wait)

    def _same_site(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Where no key is asked for, a browser must not lend its place: neither a form of another site's, nor a name
        that was made to point here."""
        host = headers.get(b"host", b"")
        if not self._proxied and host and not _LOCAL_HOST.match(host):
            raise Forbidden("without keys this server answers to the name localhost only")
        origin = headers.get(b"origin")
        if method not in _READING and origin is not None and origin.split(b"//")[-1] != host:
            raise Forbidden("requests from other sites are not taken")

    def client_address(self, peer: str, headers: dict[bytes, bytes]) -> str:
        """The address that a request comes from: the last one that no declared proxy stands for."""
        forwarded = headers.get(b"x-forwarded-for")
        if not self._proxies or not forwarded or not self._is_proxy(peer):
            return peer
        for part in reversed(forwarded.decode("latin-1").split(",")[-20:]):
            peer = part.strip()
            if not self._is_proxy(peer):
                break
        return peer[:100]

    def _is_proxy(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._proxies)


def _household(address: str) -> str:
    """Whom an address stands for: behind a public one of IPv6 its network of 64 bits, which is one subscriber's, who
    has an address for every request."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    if found not in _PUBLIC_IPV6:
        return str(found.ipv4_mapped or address)
    return str(ip_network((int(found) >> 64 << 64, 64)))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(headers: dict[bytes, bytes]) -> str:
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    token = value.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return token.decode("latin-1")
