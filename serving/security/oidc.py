"""Bearer tokens of an OpenID Connect issuer, verified with PyJWT."""

from __future__ import annotations

import asyncio
import logging
import threading

import httpx

from redoubt.errors import InvalidInput
from serving.problems import NotReady, Unauthorized
from serving.security.keys import ROLES
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")
# Asymmetric ones only: a shared secret would let who can verify a token also make one.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
_LEEWAY = 30   # seconds by which clocks may differ


class Tokens:
    """Verifies tokens; the issuer's keys are fetched when first needed and again when an unknown one appears.

    Raises:
        InvalidInput: when PyJWT is not installed.
    """

    def __init__(self, settings: Settings):
        try:
            import jwt
        except ImportError:
            raise InvalidInput("REDOUBT_OIDC_ISSUER needs PyJWT: pip install 'pyjwt[crypto]'") from None
        self._jwt, self._settings = jwt, settings
        self._client, self._lock = None, threading.Lock()

    async def verify(self, token: str) -> tuple[str, list[str]]:
        """Subject and roles of a valid token.

        Raises:
            Unauthorized: for a token that is not valid now.
            NotReady: when the issuer's keys cannot be had.
        """
        if len(token) > 16384:
            raise Unauthorized("the bearer token is not valid")
        return await asyncio.to_thread(self._verify, token)

    def _verify(self, token: str) -> tuple[str, list[str]]:
        settings, jwt = self._settings, self._jwt
        try:
            key = self._keys().get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token, key.key, algorithms=ALGORITHMS, issuer=settings.oidc_issuer, audience=settings.oidc_audience,
                leeway=_LEEWAY, options={"require": ["exp", "iat", "sub"]},
            )
        except (jwt.PyJWKClientConnectionError, httpx.HTTPError, OSError) as error:
            log.warning("the issuer's keys cannot be fetched: %s", error)
            raise NotReady("bearer tokens cannot be verified now: the issuer does not answer") from None
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthorized(f"the bearer token is not valid: {type(error).__name__}") from None
        roles = claims.get(settings.oidc_roles_claim, [])
        roles = roles.split() if isinstance(roles, str) else roles if isinstance(roles, list) else []
        return f"oidc:{claims['sub']}"[:100], [role for role in roles if role in ROLES]

    def _keys(self):
        with self._lock:
            if self._client is None:
                where = self._settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration"
                found = httpx.get(where, timeout=5).raise_for_status().json()
                if found.get("issuer") != self._settings.oidc_issuer:
                    raise ValueError("the issuer's configuration names another issuer")
                self._client = self._jwt.PyJWKClient(found["jwks_uri"], cache_keys=True, timeout=5)
            return self._client
