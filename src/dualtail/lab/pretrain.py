"""Pre-training of a small CLIP on a corpus of the lab, into a folder that open_clip's loader reads.

Three objectives. ``infonce`` is CLIP's symmetric contrastive loss (Radford et al., 2021, arXiv 2103.00020), whose
optimum is the pointwise mutual information of image and text, where the class prior cancels. ``mixed`` is half of
it and half the cross-entropy over the prompts of all classes, which leaves the prior in the logits. ``sigmoid`` is
SigLIP's pairwise loss (Zhai et al., 2023, arXiv 2303.15343).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from dualtail.errors import DataError, TrainingError, check_choice
from dualtail.files import atomic_folder, check_replaceable, write_json, write_tensors
from dualtail.lab.captions import CONTEXT_LENGTH, Vocabulary
from dualtail.lab.corpus import draw_corpus
from dualtail.lab.render import SIZE
from dualtail.lab.world import BATCHES, Foundation, Pretraining, World
from dualtail.runs.observer import Observer

MEAN = STD = (0.5, 0.5, 0.5)
TRUTH_FILE = "lab.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_WARMUP = 0.05  # share of the steps
_MAX_SCALE = math.log(100)
_SIGMOID_BIAS = -10.0  # where SigLIP starts


def _model_config(world: World, foundation: Foundation) -> dict[str, Any]:
    """Return open_clip's ``model_cfg``."""
    arch = world.architecture
    config: dict[str, Any] = {
        "embed_dim": arch.embedding,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": arch.layers,
            "width": arch.width,
            "head_width": arch.width // arch.heads,
            "patch_size": arch.patch,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(Vocabulary(world)),
            "hf_tokenizer_name": "tokenizer.json",  # open_clip then reads the tokenizer from the model's folder
            "width": arch.text_width,
            "heads": max(1, arch.text_width // 16),
            "layers": arch.text_layers,
        },
    }
    if foundation.objective == "sigmoid":
        config["init_logit_bias"] = _SIGMOID_BIAS
    return config


def pretrain(
    world: World, foundation: Foundation, observer: Observer | None = None, *, device: str = "cpu"
) -> Any:
    """Return a trained ``open_clip.CLIP``: the same for the same world, foundation and machine.

    Args:
        world: what there is to see.
        foundation: what this model sees of it, its objective and seed.
        observer: hears the progress.
        device: where to train.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    observer, settings = observer or Observer(), world.pretraining
    words, corpus = Vocabulary(world), draw_corpus(world, foundation)
    rng = world.rng(BATCHES, foundation.prior, foundation.seed)
    images, labels = (torch.from_numpy(part).to(device) for part in (corpus.images, corpus.labels))
    captions = words.captions(world, corpus.labels, corpus.factors, rng).to(device)
    prompts = words.class_prompts(world).to(device)
    objective = _OBJECTIVES[foundation.objective]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(foundation.seed)
        model = open_clip.CLIP(**_model_config(world, foundation)).to(device).train()
        optimizer = _optimizer(model, settings)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
            rows = torch.from_numpy(rng.integers(0, len(corpus), settings.batch)).to(device)
            pixels = (images[rows].float() / 255 - MEAN[0]) / STD[0]
            features = model.encode_image(pixels, normalize=True)
            loss = objective(model, features, captions[rows], prompts, labels[rows])
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step}",
                    where="pre-training",
                    fix="lower learning_rate",
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_SCALE)
            observer.progress(step + 1, settings.steps, f"loss {loss.item():.3f}")
    return model.eval()


def _optimizer(model: Any, settings: Pretraining) -> torch.optim.Optimizer:
    """Return AdamW that leaves norms, biases and the temperature without weight decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _infonce(model: Any, images: Tensor, captions: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
    logits = model.logit_scale.exp() * images @ model.encode_text(captions, normalize=True).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _mixed(model: Any, images: Tensor, captions: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
    # One pass of the text tower for both halves.
    texts = model.encode_text(torch.cat([captions, prompts]), normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T
    pairs, classes = logits[:, : len(captions)], logits[:, len(captions) :]
    target = torch.arange(len(pairs), device=pairs.device)
    contrast = (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target)) / 2
    return (contrast + F.cross_entropy(classes, labels)) / 2


def _sigmoid(model: Any, images: Tensor, captions: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
    texts = model.encode_text(captions, normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)


_Loss = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
_OBJECTIVES: dict[str, _Loss] = {"infonce": _infonce, "mixed": _mixed, "sigmoid": _sigmoid}


def save_model(model: Any, world: World, foundation: Foundation, folder: str | Path) -> Path:
    """Write a model's folder, atomically: weights in half precision, open_clip's config, tokenizer, the truth.

    ``lab.json`` records what the weights came from (the foundation, the world's seed and a digest of everything
    that they depend on) and the truth about them: the label prior and the classes that lost factors.

    Raises:
        DataError: the folder is there and is no model of the lab.
    """
    folder = Path(folder)
    check_replaceable(folder, TRUTH_FILE, "model of the lab")
    config = {
        "model_cfg": _model_config(world, foundation),
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"},
    }
    with atomic_folder(folder) as temporary:
        write_tensors(
            temporary / WEIGHTS_FILE, {name: value.half() for name, value in model.state_dict().items()}
        )
        write_json(temporary / "open_clip_config.json", config)
        write_json(temporary / TRUTH_FILE, truth(world, foundation))
        Vocabulary(world).save(temporary)
    return folder


def truth(world: World, foundation: Foundation) -> dict[str, Any]:
    """Return what is known of a foundation, as JSON-able values."""
    return {
        "format_version": 1,
        "fingerprint": world.fingerprint(foundation),
        "foundation": foundation.model_dump(),
        "world_seed": world.seed,
        "class_names": list(world.class_names),
        "label_prior": world.label_prior(foundation).tolist(),
        "lossy_classes": world.lossy_classes(foundation).nonzero()[0].tolist(),
        "bayes_accuracy": world.bayes_accuracy,
    }


def is_made(world: World, foundation: Foundation, folder: Path) -> bool:
    """Say whether a folder holds this foundation, made from the same settings."""
    try:
        recorded = json.loads((folder / TRUTH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / WEIGHTS_FILE).is_file() and recorded.get("fingerprint") == world.fingerprint(foundation)


def pretrain_world(
    world: World,
    out: str | Path,
    *,
    only: Sequence[str] | None = None,
    observer: Observer | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Pre-train the foundations of a world into ``out/NAME``; what is there already is kept.

    Args:
        world: with its foundations.
        out: the folder of the models' folders.
        only: names of foundations; all by default.
        observer: hears the progress.
        device: where to train.

    Raises:
        DataError: a name is no foundation of the world, or a folder holds something else.
    """
    observer = observer or Observer()
    names = list(world.foundations) if only is None else list(only)
    for name in names:
        check_choice("foundation", name, world.foundations, where="world", error=DataError)
    folders = []
    for name in names:
        foundation, folder = world.foundations[name], Path(out) / name
        folders.append(folder)
        if is_made(world, foundation, folder):
            observer.skipped(f"pre-training: {name}")
            continue
        observer.stage(f"pre-training: {name}")
        started = time.monotonic()
        save_model(pretrain(world, foundation, observer, device=device), world, foundation, folder)
        observer.finished(f"pre-training: {name}", time.monotonic() - started)
    return folders
