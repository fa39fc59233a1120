"""How fast the training loop is beside the loop of LIFT's authors, on the same images, model and machine.

    python benchmarks/finetune.py --images 128 --batch-size 16 --threads 1

The other loop is written anew here after what their released trainer does: float images normalised by the loader's
workers, blocks on (tokens, batch, width) with a reshape for every head, an unfused optimizer, and after every step
``.item()`` of loss, accuracy and of each sample's hit, and nine scalars for TensorBoard. ``amp`` runs it under
autocast, as their option of that name does; on a CPU that is bfloat16.

Runs alternate and are repeated, so that whatever else the machine does falls on all of them; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from torchvision import transforms

from dualtail.data.loader import train_loader
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation
from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.logits.losses import build_loss
from dualtail.models.classifier import Classifier, build_classifier


def make_photographs(root: Path, count: int, classes: int, side: tuple[int, int]) -> Manifest:
    """Write JPEG files with the detail of photographs (smooth shapes and some noise) in an ImageFolder tree."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        folder = root / "train" / f"class_{number % classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)
    return read_manifest("folder", root).split("train")


# --- the authors' loop


class TheirDataset(Dataset):
    def __init__(self, manifest: Manifest, transform: Callable[[Image.Image], Tensor]) -> None:
        self.manifest, self.transform = manifest, transform

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.manifest.file(row)) as image:
            return self.transform(image.convert("RGB")), int(self.manifest.labels[row])


class TheirModel(nn.Module):
    """The forward pass of their vision transformer over the same weights as ours."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.vit: Any = classifier.backbone.visual
        self.vit = getattr(self.vit, "model", self.vit)
        self.branches = classifier.tuner.blocks
        self.head = classifier.head

    def forward(self, x: Tensor) -> Tensor:
        vit = self.vit
        x = vit.patch_embed.proj(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([vit.cls_token.expand(x.shape[0], 1, -1), x], dim=1)
        x = vit.norm_pre(x + vit.pos_embed)
        for number, block in enumerate(vit.blocks):
            x = self.block(x.permute(1, 0, 2), block, self.branches[str(number)]).permute(1, 0, 2)
        features = vit.norm(x[:, 0, :])
        return 25 * F.linear(F.normalize(features, dim=-1), F.normalize(self.head.weight, dim=-1))

    def block(self, x: Tensor, block: Any, branch: Any) -> Tensor:
        tokens, batch, width = x.shape
        heads, attention, mlp = block.attn.num_heads, block.attn, block.mlp
        identity = x
        parts = F.linear(block.norm1(x), attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
        q, k, v = (p.contiguous().view(tokens, batch * heads, width // heads).transpose(0, 1) for p in parts)
        x = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).contiguous().view(-1, width)
        x = F.linear(x, attention.proj.weight, attention.proj.bias).view(tokens, batch, width) + identity
        identity = x
        x = F.linear(block.norm2(x), mlp.fc1.weight, mlp.fc1.bias)
        x = F.linear(mlp.act(x), mlp.fc2.weight, mlp.fc2.bias)
        x = x + branch.scale * branch.up(F.relu(branch.down(branch.norm(identity))))
        return x + identity


class Smoothed:
    """A meter with a moving average."""

    def __init__(self) -> None:
        self.value = self.average = 0.0

    def update(self, value: float) -> None:
        self.value = value
        self.average = 0.9 * self.average + 0.1 * value


class Clock:
    """Wall and CPU seconds of each step; the CPU's are this process's, hence without the loader's workers."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.last = time.perf_counter(), time.process_time()

    def step(self, *_: object) -> None:
        now = time.perf_counter(), time.process_time()
        self.steps.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now


def their_loop(
    classifier: Classifier, manifest: Manifest, args: argparse.Namespace, device: torch.device, *, amp: bool
) -> Clock:
    """Train one epoch."""
    spec = classifier.backbone.image_spec
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(spec.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    loader = DataLoader(
        TheirDataset(manifest, transform),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        pin_memory=device.type == "cuda",
    )
    model = TheirModel(classifier).to(device).train()
    counts = torch.from_numpy(manifest.counts(None)).float().to(device)
    prior = (counts / counts.sum() + 1e-9).log()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=amp and device.type == "cuda")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    writer = SummaryWriter(tempfile.mkdtemp())
    loss_meter, accuracy_meter = Smoothed(), Smoothed()
    class_meters = [Smoothed() for _ in range(manifest.num_classes)]
    groups = np.array_split(np.arange(manifest.num_classes), 3)
    clock = Clock()
    for number, (images, labels) in enumerate(loader):
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, dtype, enabled=amp):
            logits = model(images)
            loss = F.cross_entropy(logits + prior, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            correct = logits.argmax(dim=1).eq(labels).float()
            accuracy = correct.mean().mul_(100.0)
        loss_meter.update(loss.item())
        accuracy_meter.update(accuracy.item())
        for hit, label in zip(correct, labels, strict=True):
            class_meters[label].update(hit.mul_(100.0).item())
        averages = np.array([meter.average for meter in class_meters])
        scalars = [loss_meter.value, loss_meter.average, accuracy_meter.value, accuracy_meter.average]
        scalars += [averages.mean(), *(averages[group].mean() for group in groups), 0.01]
        for tag, value in enumerate(scalars):
            writer.add_scalar(f"train/{tag}", value, number)
        clock.step()
    writer.close()
    return clock


# --- ours


def our_loop(
    classifier: Classifier, manifest: Manifest, args: argparse.Namespace, device: torch.device, precision: str
) -> Clock:
    """Train one epoch."""
    loader = train_loader(
        manifest,
        build_augmentation(classifier.backbone.image_spec, "random_resized_crop"),
        batch_size=args.batch_size,
        workers=args.workers,
    )
    loss = build_loss("la", counts=torch.from_numpy(manifest.counts(None)))
    settings = FinetuneSettings(epochs=1, precision=precision, compile=args.compile)
    events, clock = tempfile.mkdtemp(), Clock()
    result = finetune(
        classifier, loader, loss, settings, progress=clock.step, events_dir=events, device=device.type
    )
    if device.type != "cpu":
        # There the loop reads its numbers every 20 steps: the epoch's time is all there is.
        clock.steps = [(result.seconds / result.steps, 0.0)] * result.steps
    return clock


# --- the comparison


def measure(loop: Callable[[Classifier], Clock], args: argparse.Namespace, classes: int) -> dict[str, float]:
    """Return images per second and CPU milliseconds an image, of the median step after the first two."""
    names = [f"class {number}" for number in range(classes)]
    classifier = build_classifier(args.backbone, names, weights="random", tuner="adaptformer")
    steps = loop(classifier).steps[2:]
    wall, cpu = (statistics.median(column) for column in zip(*steps, strict=True))
    return {"images_per_second": args.batch_size / wall, "cpu_ms_per_image": 1000 * cpu / args.batch_size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="timm:vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", type=int, nargs=2, default=(500, 375), help="size of the photographs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_photographs(Path(folder), args.images, args.classes, tuple(args.side))
        loops: dict[str, Callable[[Classifier], Clock]] = {
            "theirs, fp32": lambda c: their_loop(c, manifest, args, device, amp=False),
            "theirs, amp": lambda c: their_loop(c, manifest, args, device, amp=True),
            "ours, fp32": lambda c: our_loop(c, manifest, args, device, "fp32"),
            "ours, bf16": lambda c: our_loop(c, manifest, args, device, "bf16"),
        }
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
        for _ in range(args.repeats):
            for name, loop in loops.items():
                measured[name].append(measure(loop, args, manifest.num_classes))
                print(name, json.dumps(measured[name][-1]), flush=True)
    print(f"\n{args.backbone} on {device}, batch {args.batch_size}: medians of {args.repeats} runs in turn\n")
    print("| loop | images/s | ratio | CPU ms/image | ratio |\n|---|---|---|---|---|")
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in measured.items()
    }
    base = medians["theirs, fp32"]
    for name, run in medians.items():
        speed, cpu = run["images_per_second"], run["cpu_ms_per_image"]
        ratio = base["cpu_ms_per_image"] / cpu if cpu else float("nan")
        print(f"| {name} | {speed:.2f} | {speed / base['images_per_second']:.2f} | {cpu:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
