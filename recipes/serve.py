"""Answers questions about images over HTTP, as OpenAI's interface does: `prismatic serve RUN`; see `--help`."""

import gc
import sys
from importlib.util import find_spec

from recipes import cli
from recipes.config.serve import ServeConfig, parse_serve


def main(config: ServeConfig) -> None:
    """Loads the model and answers until SIGTERM or Ctrl-C."""
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        raise ValueError("the server needs more packages: pip install 'prismatic-locality[app]'")
    from eval.streaming.start import start_engine
    from recipes.serving.api import make_app
    from recipes.serving.chat import Limits
    from recipes.serving.server import LOCAL_NAMES, bind, is_local, serve

    limits = Limits(
        requests=config.batch_size + config.waiting,
        body=int(config.max_body_mb * 1e6),
        seconds=config.timeout,
        new_tokens=config.max_new_tokens,
    )
    listening = bind(config.host, config.port)
    engine = start_engine(
        config.model,
        precision=config.precision,
        device=config.device,
        batch_size=config.batch_size,
        waiting=config.waiting,
    )
    if not is_local(config.host):
        print("warning: there is no authentication: whoever reaches this address can use the model", file=sys.stderr)
    if engine.alone:
        print(f"warning: questions are answered one after the other: {engine.alone}", file=sys.stderr)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{listening.getsockname()[1]}/v1"
    dtype = str(next(engine.model.parameters()).dtype).removeprefix("torch.")
    listening.listen()  # who reads the next line may ask at once
    print(f"serving {config.model} ({dtype} on {engine.model.device}) at {url}", flush=True)
    gc.enable(), gc.freeze()
    try:
        hosts = LOCAL_NAMES if is_local(config.host) else None
        serve(make_app(engine, config.model, limits, hosts), listening, config.timeout)
    finally:
        engine.close(finish=False)


if __name__ == "__main__":
    cli.run(main, parse_serve)
