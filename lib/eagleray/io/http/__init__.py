"""Fetching http(s) URLs under a policy.

Whoever writes a table of URLs decides what this machine connects to, unless a policy does. Three
rules make it the policy:

- One parser. The host that it finds is the one that is judged and the one that is connected to;
  spellings that other parsers read differently are refused.
- One resolution. A connection resolves its host itself, judges every address, and connects to the
  addresses it judged. A name that answers differently a moment later gains nothing by it.
- Every hop is a new URL. Redirects are followed here, one by one, each judged like the first.
"""

from eagleray.io.http.fetch import fetch_url
from eagleray.io.http.policy import UrlPolicy

__all__ = ["UrlPolicy", "fetch_url"]
