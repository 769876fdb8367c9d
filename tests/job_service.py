"""A fake service for jobs: reports its model, scores, refuses requests or hangs, as configured."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from waiting import until

from rm_core.inputs.conversations import Messages

FINGERPRINT = {"revision": "r", "template_sha256": "t", "dtype": "float32", "attention": "eager"}

# Field with the items, and method of `Service` that scores them.
ROUTES = {
    "/v1/score": ("conversations", "score"),
    "/v1/render": ("conversations", "score"),
    "/v1/steps": ("items", "score_steps"),
    "/v1/compare": ("pairs", "judge"),
}


class Service:
    """Responds like the service; the reward is the length of the answer.

    Attributes:
        state: state of the model.
        kind: kind of the model.
        reads_images: whether the model reads images.
        more_info: further fields of the model in `/info`.
        num_asked: number of requests to `/info`.
        ready_at: number of the request to `/info` at which the model becomes ready.
        status: status of refused requests.
        refuse: called with the number of each scoring request; returns whether to refuse it.
        refuse_body: called with the body of each scoring request; returns whether to refuse it.
        requests: number of conversations of each scoring request.
        info_gate: called before each response to `/info`.
        stopped: set when the test is over.
    """

    def __init__(self) -> None:
        self.fingerprint = dict(FINGERPRINT)
        self.state = "ready"
        self.kind = "classifier"
        self.step_format: str | None = None
        self.reads_images = False
        self.more_info: dict[str, Any] = {}
        self.num_asked = 0
        self.ready_at: int | None = None
        self.status = 503
        self.refuse: Callable[[int], bool] = lambda number: False
        self.refuse_body: Callable[[bytes], bool] = lambda body: False
        self.requests: list[int] = []
        self.info_gate: Callable[[], object] = lambda: None
        self.stopped = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(200, service.info())

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(sent)
                field, method = ROUTES[self.path]
                service.requests.append(len(body[field]))
                if service.refuse(len(service.requests)) or service.refuse_body(sent):
                    self.answer(service.status, {"error": {"message": "not now"}})
                else:
                    self.answer(200, service.respond(getattr(service, method)(body[field])))

            def answer(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def info(self) -> Any:
        self.num_asked += 1
        if self.num_asked == self.ready_at:
            self.state = "ready"
        self.info_gate()
        model: dict[str, Any] = {"state": self.state, "fingerprint": self.fingerprint}
        model |= {"max_model_len": 9, "kind": self.kind, "step_format": self.step_format}
        if self.reads_images:
            model |= {"reads_images": True, "image_limits": {"max_image_bytes": 10 * 2**20}}
        return {"models": {"demo": model | {"encoding_sha256": "e"} | self.more_info}}

    def score(self, conversations: list[Messages]) -> list[Any]:
        return [
            {"reward": float(len(c[-1]["content"])), "num_tokens": 3, "truncated": False}
            for c in conversations
        ]

    def score_steps(self, items: list[Any]) -> list[Any]:
        """Each step's reward is a part of its length; no item may be without a step."""
        scored = [[len(step) / 64 for step in item["steps"]] for item in items]
        return [
            {"step_rewards": one, "reward": one[-1], "aggregation": "last", "num_tokens": 3}
            for one in scored
        ]

    def judge(self, pairs: list[Any]) -> list[Any]:
        """The log-odds are the difference of the lengths, and 1 for the first place."""
        margins = [len(pair["chosen"]) - len(pair["rejected"]) + 1.0 for pair in pairs]
        return [
            {
                "margin": margin,
                "probability": 0.5,
                "chosen_reward": None,
                "rejected_reward": None,
                "orders": [{"log_odds": margin, "label_mass": 0.9}],
                "consistent": True,
                "num_tokens": 3,
            }
            for margin in margins
        ]

    def respond(self, results: list[Any]) -> Any:
        usage = {"num_computed_tokens": 2 * len(results), "num_cached_tokens": 1}
        return {"results": results, "usage": usage, "fingerprint": self.fingerprint}

    def wait_for_request(self, number: int) -> bool:
        """Wait until this service has received a scoring request; then do not refuse."""
        until(lambda: self.requests)
        return False

    def wait_until_stopped(self) -> bool:
        """Hang until the test is over; then do not refuse."""
        self.stopped.wait()
        return False

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
