"""The settings of a server."""

from dataclasses import dataclass

from recipes.config.choices import ServePrecision
from recipes.config.parsing import check_least, parse


@dataclass
class ServeConfig:
    """Answers questions about images over HTTP, as OpenAI's interface does: prismatic serve RUN [SETTING ...].

    Questions that come at the same time are answered in one batch, and what those about the same image share is
    computed once. Without RUN the bundled model is served. Examples:

      prismatic serve runs/mine
      prismatic serve runs/mine-lora/checkpoints/step-00001500 --port 8001 --precision bf16
      prismatic serve miniature --host 0.0.0.0 --max_body_mb 5 --timeout 30

    Then, from any client of OpenAI's interface, with http://127.0.0.1:8000/v1 as its base URL and any API key:

      curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" -d '{
        "model": "runs/mine", "messages": [{"role": "user", "content": [
          {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
          {"type": "text", "text": "What color is the cross?"}]}]}'

    Its addresses are /v1/chat/completions, /v1/models and /health. SIGTERM and Ctrl-C let what has come be finished; a
    second one ends at once.
    """

    # RUN, where it does not come first: run (or its name), checkpoint, model's folder, miniature, Hugging Face id
    model: str | None = None
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 lets others in, and there is no authentication
    port: int = 8000  # port to listen at; 0 takes a free one and prints it
    precision: ServePrecision = "auto"  # bf16 or fp32; auto: bf16 on an accelerator, fp32 on a CPU
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: the accelerator if there is one
    batch_size: int = 32  # questions that are answered at the same time
    waiting: int = 256  # questions that may wait besides; more are refused with status 429
    max_body_mb: float = 20  # megabytes that a request may have; longer ones are refused with status 413
    timeout: float = 120  # seconds that a request may take with all its waiting; then it is dropped with status 504
    max_new_tokens: int = 1024  # tokens at which an answer is cut off; a request may ask for fewer, with max_tokens


def parse_serve(argv: list[str]) -> ServeConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    return parse(ServeConfig, argv, default="serve-miniature.yaml", model_first=True, check=check)


def check(config: ServeConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    if not 0 <= config.port < 2**16:
        raise ValueError(f"--port is {config.port}: expected 0 to 65535")
    check_least(config, 1, "batch_size", "max_new_tokens")
    check_least(config, 0, "waiting")
    for name in ("max_body_mb", "timeout"):
        if getattr(config, name) <= 0:
            raise ValueError(f"--{name} is {getattr(config, name):g}: expected more than 0")
