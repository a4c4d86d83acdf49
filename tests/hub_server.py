"""As much of the Hugging Face hub as downloads need, on this machine."""

import contextlib

from file_server import Handler, file_server

COMMIT = "0123456789" * 4


class Hub(Handler):
    """Also answers HEAD; of repositories in `server.gated` it says that they are."""

    def do_HEAD(self):
        self.server.asked.append((f"HEAD {self.path}", None))
        content = self.server.files.get(self.path)
        if self.path.startswith(tuple(f"/{repo}/" for repo in self.server.gated)):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted")
        elif content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()


@contextlib.contextmanager
def hub_server(patch, cache):
    """A hub that runs, known to huggingface_hub in this process, whose cache is an empty folder.

    Args:
        patch: pytest's `monkeypatch`.
        cache: The folder.
    """
    with file_server(Hub) as running:
        running.gated = ()
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        constants = {
            "ENDPOINT": running.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
        }  # fmt: skip
        for name, value in constants.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        yield running
