"""What every tuner promises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier, build_classifier, load_classifier
from dualtail.models.tuners import TUNERS, Tuner
from dualtail.testing._run import demand, run_checks
from dualtail.testing._tiny import backbone_name

CLASSES = [f"kind {index}" for index in range(24)]


@dataclass(frozen=True)
class TunerCase:
    """A tuner with the backbone and options that it is checked with.

    Attributes:
        tuner: the class, registered.
        backbone: its name.
        weights: its weights, as of ``load_backbone``.
        options: of the tuner.
        exact_start: whether a neutral start equals the backbone bit for bit, not only up to rounding.
        whole_graph: whether it compiles without a break of the graph, which costs speed and changes no result.
    """

    tuner: type[Tuner]
    backbone: str
    weights: str | None = "random"
    options: Mapping[str, Any] = field(default_factory=dict)
    exact_start: bool = False
    whole_graph: bool = True

    def load(self) -> Backbone:
        """Return the backbone, fresh."""
        return load_backbone(self.backbone, weights=self.weights)

    def attach(self, backbone: Backbone, **more: Any) -> Classifier:
        """Return a classifier of 24 classes with the tuner attached."""
        options = {**self.options, **more}
        return build_classifier(backbone, CLASSES, tuner=self.tuner.name, tuner_options=options)


def check_tuner(
    tuner: type[Tuner],
    *,
    backbone: str | None = None,
    weights: str | None = "random",
    except_for: Collection[str] = (),
    **options: Any,
) -> None:
    """Check that a tuner is what dualtail takes a tuner to be; it need not be registered.

    Args:
        tuner: derived from ``Tuner``.
        backbone: name of a small one that it fits; None for a small CLIP.
        weights: of the backbone.
        except_for: names of checks that do not hold and need not, such as "chosen_blocks" for a tuner that knows no
            blocks.
        **options: of the tuner.

    Raises:
        AssertionError: the first promise that is broken.

    Example:
        >>> check_tuner(TUNERS["ssf"])
    """
    with TUNERS.added(tuner.name, tuner), backbone_name(backbone) as name:
        case = TunerCase(tuner, name, weights, options)
        run_checks(f"the tuner {tuner.name!r}", TUNER_CHECKS, case, except_for)


def images_for(backbone: Backbone) -> Tensor:
    """Return 4 images ``(4, 3, S, S)`` uint8 of the size that a backbone takes."""
    size = backbone.image_spec.size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)


def disturb(classifier: Classifier) -> None:
    """Move every trained parameter, so that nothing stays at a neutral start."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in classifier.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def loss_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the cross-entropy if every image were of a class of its own."""
    return F.cross_entropy(classifier(images), torch.arange(len(images)))


def detachment(case: TunerCase) -> None:
    """It changes the features once trained, and detaching leaves the backbone as it was."""
    backbone = case.load()
    images = images_for(backbone)
    before, keys = backbone.features(images), list(backbone.state_dict())
    kinds = [type(module) for module in backbone.modules()]
    classifier = case.attach(backbone)
    disturb(classifier)
    changed = not torch.equal(classifier.features(images), before)
    trains = classifier.tuner.num_parameters > 0
    demand(
        changed is trains, f"it trains {classifier.tuner.num_parameters} numbers; features changed: {changed}"
    )
    classifier.tuner.detach()
    demand(torch.equal(backbone.features(images), before), "the features are not those of before")
    demand(list(backbone.state_dict()) == keys, "the state has other keys than before")
    demand([type(module) for module in backbone.modules()] == kinds, "the modules are not those of before")
    demand(
        not any(p.requires_grad for p in backbone.parameters()), "a parameter of the backbone still trains"
    )
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
    demand(not hooked, "a hook is still there; give it to on_detach")
    case.attach(backbone)  # another one fits again


def trained_parameters(case: TunerCase) -> None:
    """What asks for a gradient is what ``trainable`` names."""
    classifier = case.attach(case.load())
    asking = {id(p) for p in classifier.parameters() if p.requires_grad}
    demand(asking == {id(p) for p in classifier.trainable_parameters().values()}, "they are not the same")


def start(case: TunerCase) -> None:
    """The first forward is the backbone's exactly if the tuner says ``neutral``."""
    backbone = case.load()
    images = images_for(backbone)
    before = backbone.features(images)
    after = case.attach(backbone).features(images)
    if not case.tuner.neutral:
        demand(not torch.allclose(after, before, atol=1e-3), "it is, though the tuner says otherwise")
    elif case.exact_start:
        demand(torch.equal(after, before), "it is not, to the bit")
    else:
        torch.testing.assert_close(after, before)


def training_step(case: TunerCase) -> None:
    """A step along the gradient lowers the loss, reaches every parameter and leaves frozen ones alone."""
    for moved in (False, True):  # what starts at zero may hold back the gradient of the rest
        backbone = case.load()
        classifier = case.attach(backbone).train()
        if moved:
            disturb(classifier)
        _take_step(classifier, images_for(backbone))


def _take_step(classifier: Classifier, images: Tensor) -> None:
    trained = classifier.trainable_parameters()
    frozen = {name: p.detach().clone() for name, p in classifier.named_parameters() if not p.requires_grad}
    # Weights are random here, so steps are small enough for the loss to follow the gradient.
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    first = loss_of(classifier, images)
    first.backward()
    silent = [name for name, parameter in trained.items() if parameter.grad is None]
    demand(not silent, f"no gradient reaches {', '.join(silent)}")
    optimizer.step()
    second = loss_of(classifier, images)
    demand(second < first, f"the loss goes from {first} to {second}")
    now = dict(classifier.named_parameters())
    moved = [name for name, value in frozen.items() if not torch.equal(now[name], value)]
    demand(not moved, f"{', '.join(moved)} moved")


def chosen_blocks(case: TunerCase) -> None:
    """Only the chosen blocks are tuned, and no gradient work happens below the first of them."""
    backbone = case.load()
    if not backbone.blocks:
        return
    classifier = case.attach(backbone, blocks=[-1])
    asks: dict[int, bool] = {}
    for block in backbone.blocks:
        block.module.register_forward_hook(
            lambda module, args, output, index=block.index: asks.update({index: output.requires_grad})
        )
    classifier(images_for(backbone))
    expected = {block.index: block.index == backbone.depth - 1 for block in backbone.blocks}
    demand(
        asks == expected, f"with the last block chosen, gradients are asked for after blocks as {asks} says"
    )


def autocast(case: TunerCase) -> None:
    """The residual stream keeps its precision under autocast; wider, it doubles what every later block moves."""
    backbone = case.load()
    dtypes: list[torch.dtype] = []
    for block in backbone.blocks:
        block.module.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone.features(images_for(backbone))
        before = dtypes.copy()
        dtypes.clear()
        case.attach(backbone)
        backbone.features(images_for(backbone))
    demand(dtypes == before, f"the blocks give {dtypes}, without it {before}")


def saving(case: TunerCase) -> None:
    """A saved member is the same when it is loaded."""
    backbone = case.load()
    images = images_for(backbone)
    classifier = case.attach(backbone, seed=4)
    disturb(classifier)
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(folder)
        again = load_classifier(folder)
    demand(again.config() == classifier.config(), "its configuration is another")
    demand(torch.equal(again(images), classifier(images)), "its logits are others")


def one_graph(case: TunerCase) -> None:
    """It compiles, in one graph where it says so, with the same gradients."""
    backbone = case.load()
    images = images_for(backbone)
    classifier = case.attach(backbone)
    disturb(classifier)
    torch.compiler.reset()
    compiled = torch.compile(classifier, backend="eager", fullgraph=case.whole_graph)
    weight = classifier.head.get_parameter("weight")
    expected = torch.autograd.grad(loss_of(classifier, images), weight)
    actual = torch.autograd.grad(loss_of(compiled, images), weight)  # type: ignore[arg-type]
    torch.testing.assert_close(compiled(images), classifier(images))
    torch.testing.assert_close(actual, expected)


def seeds(case: TunerCase) -> None:
    """Its random start follows its own seed, and torch's generator is left alone."""
    backbone, starts = case.load(), []
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for _ in range(2):
        classifier = case.attach(backbone, seed=1)
        starts.append({name: value.clone() for name, value in classifier.trainable_state().items()})
        classifier.tuner.detach()
    demand(torch.equal(torch.get_rng_state(), before), "it draws from torch's generator")
    demand(starts[0].keys() == starts[1].keys(), "the names of its parameters change")
    same = all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    demand(same, "the same seed gives another start")


TUNER_CHECKS: Sequence[Callable[[TunerCase], None]] = (
    detachment,
    trained_parameters,
    start,
    training_step,
    chosen_blocks,
    autocast,
    saving,
    one_graph,
    seeds,
)
