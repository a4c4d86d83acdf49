"""Why a request is not answered, in the form that OpenAI's clients understand."""

import json

KINDS = {408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}


class Refusal(Exception):
    """A request is not answered.

    Args:
        message: one line, for who sent the request.
        param: what of the request is wrong, such as `messages[1].content`.
        status: HTTP status.
        code: OpenAI's name for the case.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> bytes:
        """The JSON that is sent."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": " ".join(self.message.split()), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def headers(self) -> dict[str, str]:
        """What is sent in front of it besides type and length."""
        return {"retry-after": "1"} if self.status == 429 else {}
