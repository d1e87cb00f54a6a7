"""Static files of the console, out of the package, named by their content so that browsers may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Asset:
    name: str
    content: bytes
    packed: bytes
    media_type: str


class Assets:
    """The files of `static/` and of `static/vendor/`, read when the first of them is needed."""

    @cached_property
    def paths(self) -> Mapping[str, str]:
        """The path of each file by its plain name."""
        return {asset.name: f"/static/{named}" for named, asset in self._found.items()}

    @cached_property
    def _found(self) -> Mapping[str, _Asset]:
        root = files("smsgateway.console").joinpath("static")
        found = {}
        for file in (*root.iterdir(), *root.joinpath("vendor").iterdir()):
            stem, dot, suffix = file.name.rpartition(".")
            media_type = _TYPES.get(dot + suffix)
            if media_type is not None:
                content = file.read_bytes()
                named = f"{stem}.{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
                found[named] = _Asset(file.name, content, gzip.compress(content, mtime=0), media_type)
        return found

    async def serve(self, request: Request) -> Response:
        """The file of a path, or 404: another release's files are not ours to keep."""
        asset = self._found.get(request.path_params["name"])
        if asset is None:
            return Response(status_code=404)
        headers = {"cache-control": _FOR_EVER, "vary": "accept-encoding", "x-content-type-options": "nosniff"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed, headers={**headers, "content-encoding": "gzip"}, media_type=asset.media_type)
        return Response(asset.content, headers=headers, media_type=asset.media_type)
