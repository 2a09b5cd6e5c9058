"""What a model string means: a path that exists, then `module:attribute`, then a hub id."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError, nearest
from limbeck.signals import Head

STUDENT_FILE = "limbeck.json"
WEIGHTS_FILE = "model.safetensors"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.safetensors)(?<!\.pt)(?<!\.pth)(?<!\.bin)")


@dataclass
class Source:
    """A loaded model and all that its files said about it.

    `spec` is how to build it again (None for a live object that has no address); `weights` is the file its parameters
    came from (None: they are new, so only a checkpoint can give them back). Where `spec` names the folder of a student,
    `origin` is how the network in it is built. `surgery` is what was done to that network since, in order:
    `{"by": "module:function", "structure": {...}}`. `head` is that of a language model, `tokenizer` where its
    tokenizer lies.
    """

    model: nn.Module
    spec: dict[str, Any] | None
    weights: Path | None
    view: Any = None
    taps: dict[str, str] = field(default_factory=dict)
    labels: list[str] | None = None
    origin: dict[str, Any] | None = None
    surgery: list[dict[str, Any]] = field(default_factory=list)
    view_for: Callable[[Iterable[str]], Any] | None = None
    head: Head | None = None
    tokenizer: str | None = None

    def describe(self) -> str:
        """Where it came from, in a few words."""
        what = self.spec["model"] if self.spec else f"{type(self.model).__name__} given in Python"
        return f"{what}, weights from {self.weights}" if self.weights else f"{what}, weights as constructed"


def tokenizer_beside(model: Any) -> str | None:
    """Where the tokenizer of a model lies: in its folder, in that of a run's student, on the hub; None for other models."""
    if isinstance(model, nn.Module):
        model = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(model, (str, Path)):
        return None
    for folder in (Path(model) / "student", Path(model)):
        if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            return str(folder)
    hub = _HUB_NAME.fullmatch(str(model)) and not Path(model).exists() and not Path(model).parent.exists()
    return str(model) if hub else None


def context_of(model: Any) -> int | None:
    """The most tokens that a model can read, as its configuration says."""
    config = getattr(model, "config", None)
    if isinstance(model, (str, Path)):
        files = (Path(model) / "student" / "config.json", Path(model) / "config.json")
        file = next((file for file in files if file.exists()), None)
        facts = json.loads(file.read_text()) if file is not None else {}
        told = facts.get("text_config", facts)
        return told.get("max_position_embeddings", told.get("n_positions"))
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def import_from(address: str, what: str) -> Any:
    """Import `module:attribute`; the current folder counts, as it does for `python -m`.

    Raises:
        RecipeError: not such an address, no such module, or no such attribute (close ones are named).
    """
    module_name, _, attribute = address.partition(":")
    if not module_name or not attribute:
        raise RecipeError(f"{what} '{address}': write module:attribute, for example my_models:SmallCNN.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise RecipeError(
                f"{what} '{address}': {module_name} needs the module {error.name}, which is not installed."
            ) from error
        raise RecipeError(
            f"{what} '{address}': there is no module {module_name} here ({Path.cwd()}) or installed."
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise RecipeError(f"{what} '{address}': {module_name} has no {part}. {nearest(part, public)}")
        value = getattr(value, part)
    return value


def load_model(
    model: nn.Module | str | Path,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    whose: str = "model",
) -> Source:
    """Build the model that `model` names, and load its weights.

    Raises:
        RecipeError: the address leads nowhere, the arguments do not fit, or the weights do not.
    """
    if isinstance(model, nn.Module):
        source = Source(model, None, None)
    elif isinstance(model, (str, Path)) and Path(model).exists():
        source = _from_path(Path(model), dict(args or {}), whose)
    elif isinstance(model, str) and ":" in model:
        source = _from_import(model, dict(args or {}), whose)
    elif isinstance(model, str) and _HUB_NAME.fullmatch(model) and not Path(model).parent.exists():
        from limbeck.models import adapters

        source = adapters.read(model, whose, dict(args or {}))
    elif isinstance(model, str):
        raise RecipeError(
            f"{whose}.model '{model}': no such path here ({Path.cwd()}), not module:attribute, and not a hub name (owner/name)."
        )
    else:
        raise RecipeError(
            f"{whose}.model is a {type(model).__name__}; needed is a torch module or a string that names one."
        )
    if isinstance(model, nn.Module) or source.weights is None:
        from limbeck.models import adapters

        adapters.settle(source)
    if weights is not None:
        load_weights(source.model, weights, whose)
        source.weights = Path(weights).resolve()
    return source


def _from_import(address: str, args: dict[str, Any], whose: str) -> Source:
    made = import_from(address, f"{whose}.model")
    if isinstance(made, nn.Module):
        if args:
            raise RecipeError(f"{whose}.args were given, but {address} is a finished module, not a class or function.")
        return Source(made, {"model": address}, None)
    try:
        model = made(**args)
    except TypeError as error:
        raise RecipeError(f"{whose}.args do not fit {address}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{whose}.model '{address}' gave a {type(model).__name__}; needed is a torch module.")
    return Source(model, {"model": address, **({"args": args} if args else {})}, None)


def operate(source: Source, by: str, structure: Mapping[str, Any]) -> None:
    """Change how a loaded network is built, and note it, so that the folder it ships in can be built again.

    Args:
        source: of the actor; call its `listen_again()` afterwards.
        by: `module:function`, called as `function(model, **structure)`; it alters the model in place.
        structure: plain data, all that the function needs besides the model. Weights come later, from the folder.

    What the function draws follows from the weights that are there, so every process of a run draws the same, and the
    random generator is left as it was.
    """
    function = import_from(by, "surgery")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(fingerprint(source.model)[:8], 16))
        function(source.model, **structure)
    source.surgery.append({"by": by, "structure": json.loads(json.dumps(dict(structure)))})


def rebuild(model: nn.Module, folder: str | Path, whose: str = "student") -> None:
    """Bring a newly built model into the state of the student in `folder`: its surgery repeated, its weights loaded.

    Raises:
        RecipeError: the surgery or the weights do not fit this model.
    """
    facts = json.loads((Path(folder) / STUDENT_FILE).read_text())
    for done in facts.get("surgery", []):
        try:
            import_from(done["by"], f"{whose}: surgery")(model, **done["structure"])
        except (TypeError, AttributeError) as error:
            raise RecipeError(
                f"{whose}: {done['by']} cannot be repeated on this {type(model).__name__}: {error}."
            ) from error
    load_weights(model, Path(folder) / WEIGHTS_FILE, whose)


def _from_path(path: Path, args: dict[str, Any], whose: str) -> Source:
    from limbeck.models import adapters

    folder = path / "student" if (path / "student" / STUDENT_FILE).exists() else path
    if (folder / STUDENT_FILE).exists():
        facts = json.loads((folder / STUDENT_FILE).read_text())
        source = adapters.rebuilt(folder, facts, whose)
        if source is None and not facts.get("model"):
            raise RecipeError(
                f"{folder} holds the weights of {facts.get('class', 'a model')} given in Python, which has no address. "
                + (
                    f"Build the model yourself and call limbeck.sources.rebuild(model, '{folder}'), for it was operated on"
                    if facts.get("surgery")
                    else f"Build the model yourself and pass {whose}.weights={folder / WEIGHTS_FILE}"
                )
            )
        source = source or load_model(facts["model"], args=facts.get("args"), whose=whose)
        rebuild(source.model, folder, whose)
        source.origin = source.origin or source.spec
        source.spec, source.surgery = {"model": str(path)}, [*source.surgery, *facts.get("surgery", [])]
        source.weights = (folder / WEIGHTS_FILE).resolve()
        if source.head is None:  # a language model is shown what the columns at hand are, packed or not
            source.view = adapters.at_home(facts.get("view"), folder)
        source.labels = facts.get("labels")
        source.taps = facts.get("taps") or {}
        return source
    family = adapters.folder_of(path)
    if family is not None:
        return adapters.read(path, whose, args, family)
    if (path / "cache.json").exists():
        raise RecipeError(f"{whose}.model {path}: a cache holds a teacher's answers and no network: teacher={path}")
    if (path / "recipe.yaml").exists():
        raise RecipeError(
            f"{whose}.model {path}: this run has no student yet (it did not finish). limbeck resume {path}"
        )
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise RecipeError(
            f"{whose}.model {path} holds weights only. Say what they belong to: {whose}.model=my_models:Net {whose}.weights={path}"
        )
    raise RecipeError(
        f"{whose}.model {path}: neither a run folder ({STUDENT_FILE}) nor a transformers folder (config.json)."
    )


def read_weights(path: str | Path, whose: str) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, or from a `.pt` of plain tensors (never executing what it holds).

    Raises:
        RecipeError: no such file, a damaged one, or one that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{whose}.weights {path}: there is no such file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise RecipeError(f"{whose}.weights {path}: the file is cut short or damaged ({error}).") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecipeError(
            f"{whose}.weights {path} holds more than tensors and is not opened, because it could run code. Convert it once, where you trust it: "
            f"state = torch.load('{path.name}', weights_only=False); safetensors.torch.save_file(state, '{path.stem}.safetensors')"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RecipeError(f"{whose}.weights {path}: needed is a mapping from parameter names to tensors.")
    return state


def load_weights(model: nn.Module, path: str | Path, whose: str) -> None:
    """Read weights into `model`; names and shapes must fit exactly.

    Raises:
        RecipeError: with the names that are missing, left over, or of another shape.
    """
    state = read_weights(path, whose)
    own = model.state_dict()
    shared = _shared_names(model)
    missing = [n for n in own if n not in state and not (shared.get(n, set()) & state.keys())]
    extra = [n for n in state if n not in own]
    shapes = [
        f"{n} {list(state[n].shape)} for {list(own[n].shape)}"
        for n in state
        if n in own and state[n].shape != own[n].shape
    ]
    if missing or extra or shapes:

        def told(word: str, names: list[str]) -> str:
            return f" {word}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."

        raise RecipeError(
            f"{whose}.weights {path} do not fit {type(model).__name__}:"
            + (told("missing", missing) if missing else "")
            + (told("unknown", extra) if extra else "")
            + (told("other shape", shapes) if shapes else "")
        )
    model.load_state_dict(state, strict=False)


def _shared_names(model: nn.Module) -> dict[str, set[str]]:
    """For every name of a tied parameter, all its names: safetensors keeps a tied tensor once."""
    groups: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), set()).add(name)
    return {name: names for names in groups.values() if len(names) > 1 for name in names}


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers as safetensors; tied tensors once."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        state[name] = tensor.detach().cpu().contiguous().clone()
    save_file(state, path)


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 over all parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return digest.hexdigest()[:16]
