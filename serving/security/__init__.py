"""Who may do what: API keys and bearer tokens, roles, rate limits, and the record of what operators did."""

from serving.security.access import Access, Principal, needed_role
from serving.security.audit import Audit
from serving.security.keys import ROLES, Key, KeyStore, new_key

__all__ = ["ROLES", "Access", "Audit", "Key", "KeyStore", "Principal", "needed_role", "new_key"]
