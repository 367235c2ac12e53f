"""A service that does nothing but tell that it is ready; stands in for real ones under test."""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

BEHAVIOUR = os.environ.get("FAKE_BEHAVIOUR", "")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"pid": os.getpid()}).encode()
        self.send_response(503 if BEHAVIOUR == "unready" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    if BEHAVIOUR == "broken":
        sys.exit("cannot find my trousers")
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    HTTPServer(("127.0.0.1", int(os.environ["PENSTOCK_METRICS_PORT"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
