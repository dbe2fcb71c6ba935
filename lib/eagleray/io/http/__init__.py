"""Fetches http(s) URLs under a policy that prevents server-side request forgery.

Without a policy, the author of a table of URLs decides what this machine connects to. Three rules
enforce the policy:

- One parser. The host that it returns is the one that is checked and connected to; spellings that
  other parsers interpret differently are rejected.
- One resolution. A connection resolves its host itself, checks every address, and connects to the
  checked addresses, which defeats DNS rebinding.
- Every redirect is a new URL: redirects are followed here, one by one, and each is checked.
"""

from eagleray.io.http.fetch import fetch_url
from eagleray.io.http.policy import UrlPolicy

__all__ = ["UrlPolicy", "fetch_url"]
