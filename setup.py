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
        "prismatic": ["miniature/assets/*/*", "miniature/study/*.html"],
        "vision_backbones": ["assets/*"],
        "eval": ["*.html", "*.json"],
        "recipes": ["configs/*.yaml", "configs/accelerate/*.yaml", "slurm/*.sbatch"],
    },
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
        "safetensors>=0.5",
        "pillow>=10.0",
        "numpy>=1.26",
        "tqdm>=4.60",
        "jinja2>=3.1.6",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "matplotlib>=3.8",
    ],
    extras_require={
        "dev": ["pytest>=8.0", "pytest-xdist>=3.6", "ruff>=0.9", "hypothesis>=6.100", "psutil>=5.9"],
        "smollm2": ["gguf>=0.10"],
        "quantize": ["bitsandbytes>=0.48"],
        "trackers": ["tensorboard", "trackio", "wandb"],
    },
)
