"""The HTTP session with a server: the key, the proxy, the certificates, and when the server wants to be asked again."""

import email.utils
import http.cookiejar
import os
import time

import requests
from requests.adapters import HTTPAdapter


def make_session(address: str, concurrency: int, key: str | None) -> requests.Session:
    """A session for requests to a server. From the environment it takes only the proxy and the certificates, and only
    for https://.

    Without `trust_env`, ~/.netrc cannot replace the key. A proxy is used for https:// only: it then sees the name of
    the server, but neither the key nor the prompts.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers["Accept-Encoding"] = "identity"  # a small compressed answer could become huge
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    if key is not None:
        session.headers["Authorization"] = f"Bearer {key}"
    if address.startswith("https://"):
        session.proxies = requests.utils.get_environ_proxies(address)
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
    return session


def asked_wait(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, as a number or a date; None if it is missing or unreadable."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
