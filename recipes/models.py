"""`prismatic models`: what was released and is fetched by name, VLMs and vision backbones."""

import argparse
import sys

HELP = """\
List the vision-language models and the weights of vision backbones that their authors released. They are fetched when
they are first used, by name:

  prismatic chat prism-dinosiglip+7b --image photo.jpg
  prismatic probe --backbone clip-vit-b-aligned --dataset ade20k --data_root data/ade20k

"here" says whether that was done before. A 7B takes 27 GB as it is kept, in float32, besides the authors' file in the
cache of the Hugging Face hub. `hf cache` shows and clears that.
"""


def main(argv: list[str]) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(
        prog="prismatic models", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    print(listed())


def listed() -> str:
    """The tables; imports no torch."""
    from prismatic.models.released import HUB_REPO, IDS, imported_folder, models_folder
    from recipes.config.presets import read_presets
    from vision_backbones import get_spec
    from vision_backbones.released import RELEASED
    from vision_backbones.table import table
    from vision_backbones.weights import weights_folder

    presets, weights = read_presets("models.yaml"), weights_folder()
    vlms = [
        (id, presets[id]["vision_backbone"], presets[id]["llm"], "yes" if imported_folder(id).is_dir() else "no")
        for id in IDS
    ]
    backbones = [
        (
            release.backbone,
            get_spec(release.backbone).arch,
            "yes" if (weights / f"{name}.safetensors").is_file() else "no",
            release.page,
        )
        for name, release in RELEASED.items()
    ]
    return "\n".join(
        [
            table(vlms, ("id", "vision backbone", "LLM", "here")),
            f"From {HUB_REPO} on the Hugging Face hub into {models_folder()} (PRISMATIC_MODELS).",
            "To train one anew: prismatic finetune --model ID.",
            "",
            table(backbones, ("vision backbone", "architecture", "here", "from")),
            f"Into {weights} (VISION_BACKBONES_WEIGHTS). Other backbones: prismatic backbones list.",
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
