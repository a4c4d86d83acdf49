"""The settings of a conversation in the terminal."""

from dataclasses import dataclass, field

from recipes.config.choices import ServePrecision
from recipes.config.parsing import check_least, parse


@dataclass
class ChatConfig:
    """Talks with a vision-language model in the terminal: prismatic chat [RUN] [--image FILE].

    Without RUN it is the bundled model; without --image there, it looks at a drawn scene, whose file it names. Type
    /help for commands. Examples:

      prismatic chat runs/mine --image photo.jpg
      prismatic chat runs/mine --questions questions.jsonl --out answers.jsonl

    Each line of questions.jsonl is an object with "question" (or "messages", as OpenAI writes them, texts alone) and
    "image" (or "images"): files, relative to the folder of questions.jsonl. Its fields are kept, "answer" is added.
    """

    # RUN, where it does not come first: run (or its name), checkpoint, model's folder, miniature, Hugging Face id
    model: str | None = None
    image: list[str] = field(default_factory=list)  # picture, or several with commas, to talk about
    system: str = ""  # system message, if the model's template has a place for one
    questions: str | None = None  # jsonl file of questions to be answered at once, without a conversation
    out: str | None = None  # file that the answers to --questions are written to; null: print them
    temperature: float = 0.0  # 0 always takes the likeliest token; 1 draws from the model's own probabilities
    top_p: float = 1.0  # draw from the likeliest tokens whose probabilities add up to this
    max_new_tokens: int = 512  # tokens at which an answer is cut off
    seed: int | None = None  # random seed of what is drawn; null: another every time
    batch_size: int = 32  # questions of a file that are answered at the same time
    precision: ServePrecision = "auto"  # bf16 or fp32; auto: bf16 on an accelerator, fp32 on a CPU
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: the accelerator if there is one
    prompt_style: str = "auto"  # chat template: a name, FILE.jinja, or auto: the model's own (see docs/llms.md)
    # current path of the base LLM of a LoRA run, if it has moved; PART=PATH,... for other parts
    base: str | None = None


def parse_chat(argv: list[str]) -> ChatConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    return parse(ChatConfig, argv, default="chat-miniature.yaml", model_first=True, check=check)


def check(config: ChatConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    if config.out and not config.questions:
        raise ValueError("--out is for answers to --questions; in a conversation, /save FILE writes it")
    if config.questions and config.image:
        raise ValueError("the lines of --questions name their images: drop --image")
    check_least(config, 0, "temperature")
    check_least(config, 1, "max_new_tokens", "batch_size")
    if not 0 < config.top_p <= 1:
        raise ValueError(f"--top_p is {config.top_p}: expected more than 0, at most 1")
