"""``python -m compresskit.serve.probe [URL]``: whether a server is ready, for a container's health check.

Exit code 0 when it is, 1 when it isn't. The address is the argument, else ``COMPRESSKIT_PROBE``, else
``http://127.0.0.1:8080``.
"""

from __future__ import annotations

import http.client
import os
import sys
from urllib.parse import urlsplit

_TIMEOUT = 3.0


def is_ready(url: str) -> bool:
    """Whether the server at an address says that it is ready. No proxy is asked."""
    parts = urlsplit(url)
    try:
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("COMPRESSKIT_PROBE", "http://127.0.0.1:8080")
    sys.exit(0 if is_ready(given) else 1)
