"""Weights that a person or another program hands in while the run goes on."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcore.domains import Domain
from mixcore.errors import ArgumentError, ArgumentTypeError, MixcoreError
from mixcore.methods import register
from mixcore.methods.base import Floats, Method, Weights, normalise, per_domain
from mixcore.signals import Signals

KEYS = ("weights", "author", "reason")
MOST_BYTES = 16 << 20


@register
class External(Method):
    """The weights of the latest request, from a file or a callable polled at every update.

    Example, the file:
        {"weights": {"web": 0.6, "code": 0.4}, "author": "ana", "reason": "more code"}

    A request names every domain, its author and its reason; both end up in the ledger. Requests are
    told apart by their content: the same one is applied once, however often it is read, touched, or
    found again after a resume. To repeat an earlier request, change something (the reason, say).

    What is no request (half written, malformed, of other domains) is reported once, as a
    UserWarning, and ignored until it changes. Between requests the method is silent: the controller
    then decides nothing. Only rank 0 polls.

    Args:
        domains: What the weights are for.
        path: The file; it need not be there.
        poll: Called without arguments instead: a request as a mapping, or None.
        initial: What `weights()` says before the first request.
    """

    name = "external"
    family = "dynamic externally guided"
    paper = "none; any person or program"
    update_every = 1
    cost = "one small file read on rank 0 at an update"
    state_fields = ("applied", "refused", "author", "reason")

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        path: str | os.PathLike[str] | None = None,
        poll: Callable[[], Mapping[str, Any] | None] | None = None,
        initial: Weights | None = None,
    ) -> None:
        super().__init__(domains, initial=initial)
        if (path is None) == (poll is None):
            raise ArgumentError(f"give path or poll, got path={path!r}, poll={poll!r}")
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"path must be a str or a Path, got {path!r}")
        if poll is not None and not callable(poll):
            raise ArgumentTypeError(f"poll must be callable, got {poll!r}")
        self.path = None if path is None else Path(path)
        self.poll = poll
        self.silent = True
        self.applied = ""  # digest of the request in force
        self.refused = ""  # digest of what was reported last
        self.author = ""
        self.reason = ""

    def why(self) -> tuple[str, str]:
        """Author and reason of the last request."""
        return self.author, self.reason

    def _update(self, signals: Signals) -> Floats:
        self.silent = True
        content = self._content()
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        if content is None or digest in (self.applied, self.refused):
            return self._weights
        try:
            weights, author, reason = self._request(content)
        except (MixcoreError, ValueError, RecursionError) as e:
            self._report(digest, str(e))
            return self._weights
        self.silent = False
        self.applied, self.refused = digest, ""
        self.author, self.reason = author, reason
        return weights

    def _content(self) -> bytes | None:
        if self.poll is not None:
            request = self.poll()
            if request is None:
                return None
            try:
                return json.dumps(request, sort_keys=True).encode()
            except (TypeError, ValueError) as e:
                return f"no JSON: {e}".encode()
        assert self.path is not None
        try:
            with open(self.path, "rb") as f:
                return f.read(MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as e:
            self._report(f"{type(e).__name__} {e.errno}", str(e))
            return None

    def _request(self, content: bytes) -> tuple[Floats, str, str]:
        body = json.loads(content)
        if not isinstance(body, dict) or set(body) != set(KEYS):
            got = sorted(body) if isinstance(body, dict) else body
            raise ArgumentError(f"a request must have the keys {', '.join(KEYS)}, got {got}")
        if not isinstance(body["weights"], dict):
            raise ArgumentTypeError(f"weights must be given by name, got {body['weights']!r}")
        for key in ("author", "reason"):
            if not isinstance(body[key], str) or not body[key].strip():
                raise ArgumentError(f"{key} must be a text, not empty, got {body[key]!r}")
        weights = normalise(per_domain("weights", body["weights"], self.domains))
        return weights, body["author"], body["reason"]

    def _report(self, digest: str, problem: str) -> None:
        if self.refused == digest:
            return
        self.refused = digest
        where = self.path if self.path is not None else "poll"
        warnings.warn(f"external: {where}: {problem}; ignored until it changes", stacklevel=2)
