"""Installs the four packages: prismatic, vision_backbones, eval, recipes."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="prismatic-locality",
    version="0.1.0",
    description="Train and evaluate vision-language models on locality-aligned vision backbones",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["prismatic*", "vision_backbones*", "eval*", "recipes*"]),
    package_data={
        "prismatic": ["miniature/assets/*/*"],
        "vision_backbones": ["assets/*"],
        "eval": ["*.json", "report/*.html"],
        "recipes": ["configs/*.yaml", "configs/accelerate/*.yaml", "slurm/*.sbatch", "reproduce/*.html"],
    },
    entry_points={"console_scripts": ["prismatic = recipes.cli:main"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "transformers>=5.23",
        "accelerate>=1.10",
        "peft>=0.18",
        "timm>=1.0.24",
        "sentencepiece>=0.2",
        "draccus>=0.11",
        "jsonlines>=4.0",
        "datasets>=4.0",
        "safetensors>=0.8",
        "pillow>=10.1",
        "numpy>=2.0",
        "tqdm>=4.66.3",
        "jinja2>=3.1.6",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "matplotlib>=3.9",
    ],
    extras_require={
        "dev": ["pytest>=8.0", "pytest-xdist>=3.6", "ruff>=0.9", "hypothesis>=6.100", "psutil>=5.9", "shtab>=1.6"],
        "completion": ["shtab>=1.6"],
        "smollm2": ["gguf>=0.10"],
        "quantize": ["bitsandbytes>=0.48"],
        "trackers": ["tensorboard", "trackio", "wandb"],
    },
)
