"""What the files of a model may ask for: weights, sizes and words, and no code of their own.

A model's folder, or its repository on the hub, comes with configurations that libraries read generously: some name
Python files to import, models to fetch, or keywords of constructors. Here is listed what they may give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
from open_clip import hf_model
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from dualtail.errors import BackboneError, nearest_fix, shown
from dualtail.files import read_text

TOKENIZER_OPTIONS: dict[str, type] = {
    **dict.fromkeys(("clean", "language", "padding_side", "truncation_side"), str),
    **dict.fromkeys((f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), str),
    **dict.fromkeys(("strip_sep_token", "add_prefix_space", "add_bos_token", "add_eos_token"), bool),
    **dict.fromkeys(("do_lower_case", "legacy", "use_fast"), bool),
    "model_max_length": int,
}
"""The keywords of a tokenizer that a model's configuration may give, and their types."""

MAX_LAYERS = 1000
"""Of a tower, or of a stage of it: many more than any published one has; a file may name so many that none is built."""
_OWN_CODE = ("auto_map", "custom_pipelines")
_NO_CODE = (
    "dualtail runs no code of a model: use one that open_clip, timm or transformers build by themselves"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DEFAULT_CONTEXT = 77


def check_model_cfg(model_cfg: Mapping[str, Any], where: str) -> None:
    """Refuse what in open_clip's ``model_cfg`` reaches further than sizes and known names.

    Args:
        model_cfg: of a folder or a repository.
        where: its file, for messages.

    Raises:
        BackboneError: a tokenizer keyword that is not listed, a name that is none of timm's architectures or of the
            hub, or anything that would run code of the model.
    """
    refuse_own_code_in(model_cfg, where)
    parts = {key: model_cfg.get(key, {}) for key in ("text_cfg", "vision_cfg")}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            raise BackboneError(f"{key} is no mapping", where=where, fix="mend its model_cfg")
        layers = part.get("layers")
        stages = layers if isinstance(layers, list) else [layers]
        if any(isinstance(number, int | float) and number > MAX_LAYERS for number in stages):
            fix = f"{MAX_LAYERS} are the most that are built"
            raise BackboneError(f"{key} has {shown(layers)} layers", where=where, fix=fix)
    options = parts["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise BackboneError("tokenizer_kwargs is no mapping", where=where, fix="mend its model_cfg")
    for option, value in options.items():
        if option not in TOKENIZER_OPTIONS:
            fix = nearest_fix(option, TOKENIZER_OPTIONS, "remove it from text_cfg.tokenizer_kwargs")
            raise BackboneError(f"the tokenizer keyword {option!r} is not allowed", where=where, fix=fix)
        if type(value) is not TOKENIZER_OPTIONS[option]:
            kind = TOKENIZER_OPTIONS[option].__name__
            raise BackboneError(
                f"the tokenizer keyword {option!r} is {value!r}", where=where, fix=f"give a {kind}"
            )
    trunk = parts["vision_cfg"].get("timm_model_name")
    if trunk and not (isinstance(trunk, str) and timm.is_model(trunk.partition(".")[0])):
        raise BackboneError(
            f"timm has no architecture {trunk!r}", where=where, fix="name one of timm.list_models()"
        )
    for key in ("hf_model_name", "hf_tokenizer_name"):
        _check_hub_name(key, parts["text_cfg"].get(key), where)


def _check_hub_name(key: str, name: Any, where: str) -> None:
    """Refuse what is neither OWNER/NAME nor a folder, and a folder with code of its own."""
    if not name:
        return
    if isinstance(name, str) and "\0" not in name and Path(name).is_dir():
        refuse_own_code(Path(name))
    elif not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or ".." in name:
        raise BackboneError(
            f"{key} is {name!r}", where=where, fix="name a repository of the hub (OWNER/NAME) or a folder"
        )


def refuse_own_code(folder: Path) -> None:
    """Refuse a folder in which a configuration asks for Python of its own.

    Raises:
        BackboneError: with the file.
    """
    for file in sorted(folder.glob("*config*.json")):
        try:
            content = json.loads(read_text(file, "utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise BackboneError(
                f"cannot be read ({error})", where=str(file), fix="copy the model again"
            ) from None
        refuse_own_code_in(content, str(file))


def refuse_own_code_in(content: Any, where: str) -> None:
    """Refuse a configuration with a key at any depth that makes transformers import code.

    Example:
        >>> refuse_own_code_in({"a": [{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}]}, "tokenizer")
        Traceback (most recent call last):
        dualtail.errors.BackboneError: tokenizer: asks for code of its own (auto_map); dualtail runs no code of a ...
    """
    pending = [content]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            for key, value in part.items():
                # An implementation with a slash in it is a kernel that is fetched from the hub and run.
                kernel = str(key).endswith("_implementation") and "/" in str(value)
                if key in _OWN_CODE or kernel:
                    raise BackboneError(f"asks for code of its own ({key})", where=where, fix=_NO_CODE)
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)


@contextmanager
def without_own_code(revisions: Mapping[str, str]) -> Iterator[None]:
    """Let open_clip build text towers of transformers inside the block without any code of theirs.

    open_clip passes no ``trust_remote_code``, so that transformers would ask on the terminal.

    Args:
        revisions: of repositories on the hub.
    """
    if hf_model.transformers is None:
        yield
        return
    config, model = hf_model.AutoConfig, hf_model.AutoModel
    hf_model.AutoConfig = SimpleNamespace(from_pretrained=_distrusting(config.from_pretrained, revisions))
    hf_model.AutoModel = SimpleNamespace(
        from_config=_distrusting(model.from_config), from_pretrained=_distrusting(model.from_pretrained)
    )
    try:
        yield
    finally:
        hf_model.AutoConfig, hf_model.AutoModel = config, model


def _distrusting(load: Callable[..., Any], revisions: Mapping[str, str] | None = None) -> Callable[..., Any]:
    def loaded(source: Any, **options: Any) -> Any:
        options["trust_remote_code"] = False
        if revisions and source in revisions:
            options["revision"] = revisions[source]
        made = load(source, **options)
        implementation = getattr(made, "_attn_implementation", None)
        refuse_own_code_in({"attn_implementation": implementation}, str(source))
        return made

    return loaded


def make_tokenizer(
    model_cfg: Mapping[str, Any], folder: Path | None = None, revisions: Mapping[str, str] | None = None
) -> Any:
    """Return the tokenizer of an open_clip model, as ``open_clip.get_tokenizer`` does, and without any code of its own.

    Args:
        model_cfg: that passed :func:`check_model_cfg`.
        folder: with the tokenizer's files; None fetches those that ``model_cfg`` names from the hub.
        revisions: of repositories on the hub.
    """
    text = model_cfg.get("text_cfg", {})
    options = dict(text.get("tokenizer_kwargs") or {})
    context_length = text.get("context_length", _DEFAULT_CONTEXT)
    name = text.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=context_length, **options)
    if folder is not None:
        refuse_own_code(folder)
    elif revisions and name in revisions:
        options["revision"] = revisions[name]
    source = name if folder is None else str(folder)
    mode = text.get("tokenizer_mode")
    options |= {} if mode is None else {"tokenizer_mode": mode}  # older versions of open_clip have none
    return HFTokenizer(source, context_length=context_length, trust_remote_code=False, **options)
