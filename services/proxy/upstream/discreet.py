"""Owns what of a provider's own words about an error a customer may read: all but what names the operator there.

Errors pass to the client as they came, since its SDK and whoever reads them need status, type, code and message. But
providers also name in them whose credential it was: the organization, the project, the key's last letters, an address
within the operator's network. Those are replaced where they stand; the rest is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from urllib.parse import urlsplit

from services.proxy.upstream.configuration import Provider
from services.proxy.upstream.signing import AwsKey

_HIDDEN = b"[hidden]"
# A configured value is looked for where it has as many characters: a shorter one may be any word.
_LEAST_CHARS, _LEAST_KEY_CHARS = 6, 16
# Whose addresses everyone knows.
_PUBLIC = (".openai.com", ".anthropic.com", ".googleapis.com", ".huggingface.co", ".amazonaws.com")

# No replacement may touch what JSON is made of: none of these takes in a quote, a backslash or a brace. None begins
# anew within a word, and all are bounded: whoever echoes what it was sent may say much.
_NAMES = re.compile(
    rb"\borg-[A-Za-z0-9]{6,}"  # OpenAI: organization, project
    rb"|\bproj_[A-Za-z0-9]{6,}"
    rb"|\b(?:sk|rk|pk|sess)-[A-Za-z0-9_*.-]{6,}"  # keys, whole or with their middle left out
    rb"|\b(?:AIza|hf_|gsk_|xai-)[A-Za-z0-9_*.-]{6,}"
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    rb"|(?<![A-Za-z0-9_*-])[A-Za-z0-9_-]{0,40}\*{3,200}[A-Za-z0-9_-]{1,40}"
    rb"|(?<=ending in )[A-Za-z0-9_*.-]{2,12}|(?<=ending with )[A-Za-z0-9_*.-]{2,12}"
    rb"|\barn:aws[a-z-]*:[A-Za-z0-9_./:*+=@-]+"
    rb"|\bprojects/[A-Za-z0-9_-]+"  # Google
    rb"|\bproject_(?:number|id):[A-Za-z0-9_-]+"
    rb"|(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{1,64}@[A-Za-z0-9_-]{1,64}(?:\.[a-z]{1,9})?\.gserviceaccount\.com"
    rb"|\b(?:10|127)(?:\.[0-9]{1,3}){3}(?::[0-9]{1,5})?\b"  # addresses within a network (RFC 1918, RFC 3927)
    rb"|\b(?:192\.168|169\.254|172\.(?:1[6-9]|2[0-9]|3[01]))(?:\.[0-9]{1,3}){2}(?::[0-9]{1,5})?\b"
    rb"|(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{1,200}\.(?:internal|local|svc|lan|intra)\b(?::[0-9]{1,5})?"
)
# Said of whose it is, and then who that is: a name in quotes, or one with a figure in it.
_WHOSE = re.compile(
    rb"(?i)(\b(?:organi[sz]ation|org|workspace|project|team|tenant|consumer|subscription|account|api key)"
    rb"(?:[ _](?:id|number|name))?(?:[:=] ?| \(?)[`']?)"
    rb"((?<=[`'])[^`'\"\\{}]{1,100}(?=[`'])|(?=[A-Za-z_.:-]{0,80}[0-9])[A-Za-z0-9_.:-]{3,80})"
)


@cache
def discreet(provider: Provider) -> Callable[[bytes], bytes]:
    """What a customer may read of this provider's words about an error."""
    longest_first = sorted(set(_configured(provider)), key=len, reverse=True)
    configured = re.compile("|".join(map(re.escape, longest_first)).encode()) if longest_first else None

    def shown(words: bytes) -> bytes:
        if configured is not None:
            words = configured.sub(_HIDDEN, words)
        return _WHOSE.sub(rb"\1" + _HIDDEN, _NAMES.sub(_HIDDEN, words))

    return shown


def _configured(provider: Provider) -> Iterator[str]:
    """The operator's own values: credentials, headers, addresses."""
    for key in provider.keys:
        parts = (key.access_key_id, key.secret_access_key, key.session_token) if isinstance(key, AwsKey) else (key,)
        yield from (part for part in parts if len(part) >= _LEAST_KEY_CHARS)
    for name, value in provider.headers:
        if len(value) >= _LEAST_CHARS and not name.lower().startswith("anthropic-"):  # a version, or what is in trial
            yield value
    for base in provider.bases.values():
        parsed = urlsplit(base.url)
        host = parsed.hostname or ""
        if len(host) >= _LEAST_CHARS and not host.endswith(_PUBLIC):
            yield from (parsed.netloc, host)
