"""The facts a run was made under: versions, hardware, fingerprints, the state of the user's repository."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from limbeck import __version__

EXTRAS = {
    "text": ("transformers", "jinja2"),
    "lora": ("peft",),
    "endpoint": ("openai", "tenacity"),
    "diffusion": ("diffusers", "transformers", "peft"),
    "data": ("datasets", "pyarrow"),
    "search": ("optuna",),
    "export": ("onnx", "onnxscript", "onnxruntime", "torchao", "huggingface_hub"),
    "cluster": ("ray",),
    "embeddings": ("sentence-transformers",),
    "conflict": ("torchjd",),
    "track": ("tensorboard",),
}
"""What pyproject.toml offers beside the core, with the packages that each brings."""
SHOWN = ("torch", "accelerate", "safetensors", "pydantic", "numpy", "scikit-learn", "torchmetrics")


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, Any]:
    """Versions, machine and repository, flat, as `environment.json` keeps them."""
    found: dict[str, Any] = {
        "limbeck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    found |= {name: version(name) for name in SHOWN}
    return found | _git()


def extras() -> dict[str, dict[str, str | None]]:
    """Every extra with the packages it brings and their versions (None: missing)."""
    return {extra: {package: version(package) for package in packages} for extra, packages in EXTRAS.items()}


def _git() -> dict[str, Any]:
    """The commit of the current folder's repository and whether it has changes; nothing where there is none."""
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        return {}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {"git": "not readable"}
    return {"git": commit.stdout.strip(), "git_changes": len(changes.stdout.splitlines())}
