from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dualtail.data import transforms
from dualtail.data.transforms import (
    AUGMENTATIONS,
    SCHEDULES,
    EvalTransform,
    MinimalistCrop,
    RandomResizedCrop,
    build_augmentation,
    eval_transform,
)
from dualtail.errors import InputError
from dualtail.imagespec import ImageSpec
from dualtail.testing.data import AUGMENTATION_CHECKS, AugmentationCase, photo

SPEC = ImageSpec(size=32)


def position_image(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: a crop tells where it was cut."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("check", AUGMENTATION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_every_augmentation_promises(name, check):
    check(AugmentationCase(name, {"flip": 0.5}))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_without_flip_nothing_is_mirrored(name):
    """The column index must rise from left to right in every sample; with flips it falls in about half."""
    for flip, expected in ((0.0, 0), (1.0, 20)):
        options = {"num_ops": 0} if name == "rand_augment" else {}
        transform = build_augmentation(SPEC, name, flip=flip, **options)
        mirrored = 0
        for seed in range(20):
            torch.manual_seed(seed)
            row = transform(position_image(200, 200))[0, 16].float()
            mirrored += int(row[0] > row[-1])
        assert mirrored == expected


def test_options_are_those_that_exist():
    assert set(AUGMENTATIONS.options("resize")) == {"interpolation", "resize", "flip", "squash"}
    for name in AUGMENTATIONS:
        assert {"interpolation", "flip"} <= set(AUGMENTATIONS.options(name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minimalst", {}, "unknown augmentation 'minimalst'; did you mean 'minimalist'?"),
        (
            "resize",
            {"scale": (0.1, 1)},
            "has no option 'scale'; it takes interpolation, resize, flip, squash",
        ),
        ("random_resized_crop", {"flp": 0}, "has no option 'flp'; did you mean 'flip'?"),
        ("random_resized_crop", {"flip": 2}, "flip is 2"),
        ("random_resized_crop", {"scale": (0.5, 0.1)}, "scale is"),
        ("random_resized_crop", {"scale": [0.5, 2]}, "scale.1 is 2; it should be less than or equal to 1"),
        (
            "random_resized_crop",
            {"interpolation": "nearest"},
            "interpolation is 'nearest'; it should be ",
        ),
        ("resize", {"spec": 1}, "the augmentation 'resize' has no option 'spec'"),
        (["resize"], {}, "unknown augmentation ['resize']"),
        (None, {}, "unknown augmentation None"),
        ("rand_augment", {"magnitude": 31}, "magnitude is 31"),
        ("minimalist", {"schedule": "sine"}, "schedule is 'sine'; it should be 'convex', "),
        ("resize", {"resize": 16}, "resize is 16"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(InputError) as caught:
        build_augmentation(SPEC, name, **options)
    assert message in str(caught.value)


def test_lists_of_a_recipe_become_tuples():
    assert build_augmentation(SPEC, scale=[0.5, 1.0]) == RandomResizedCrop(32, "bicubic", scale=(0.5, 1.0))


def test_random_resized_crop_covers_its_scale():
    transform = build_augmentation(SPEC, scale=(0.25, 1.0), flip=0)
    parts = []
    for seed in range(300):
        torch.manual_seed(seed)
        out = transform(position_image(200, 200)).float()
        width = (out[0, 16, -1] - out[0, 16, 0]) / 31 * 32
        height = (out[1, -1, 16] - out[1, 0, 16]) / 31 * 32
        parts.append(float(width * height) / 200**2)
    assert min(parts) == pytest.approx(0.25, abs=0.06)
    assert max(parts) > 0.9


@pytest.mark.parametrize("size", [(90, 60), (40, 200), (300, 7), (3, 500), (1, 1)])
def test_random_boxes_are_distributed_as_torchvisions(size):
    from torchvision.transforms import RandomResizedCrop as reference

    width, height = size
    ours = RandomResizedCrop(32, "bicubic")
    image = torch.zeros(3, height, width)
    torch.manual_seed(0)
    boxes = np.array([ours.draw_box(width, height) for _ in range(2000)], dtype=float)
    peers = np.array(
        [reference.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)], dtype=float
    )
    assert (boxes[:, 0] + boxes[:, 2]).max() <= height
    assert (boxes[:, 1] + boxes[:, 3]).max() <= width
    spread = peers.std(axis=0) + 1e-9
    assert (np.abs(boxes.mean(axis=0) - peers.mean(axis=0)) <= 0.15 * spread + 0.1).all()
    assert boxes.std(axis=0) == pytest.approx(spread, rel=0.1, abs=0.3)


def test_rand_augment_does_something_and_can_be_strong():
    torch.manual_seed(0)
    plain = build_augmentation(SPEC, "rand_augment", num_ops=0)(photo())
    torch.manual_seed(0)
    strong = build_augmentation(SPEC, "rand_augment", num_ops=3, magnitude=20)(photo())
    assert not torch.equal(plain, strong)


# --- the minimalist crop of LIFT+


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_minimalist_schedule(schedule):
    crop = MinimalistCrop(32, "bicubic", schedule=schedule)
    scales = [crop.min_scale(t) for t in np.linspace(0, 1, 11)]
    assert scales == sorted(scales)
    assert scales[0] == (1.0 if schedule == "max" else 0.08)
    assert scales[-1] == (0.08 if schedule == "min" else 1.0)
    middle = {"convex": 1 - math.sqrt(0.75), "linear": 0.5, "concave": math.sqrt(0.75), "min": 0, "max": 1}
    assert scales[5] == pytest.approx(0.08 + 0.92 * middle[schedule])


def test_minimalist_ends_with_the_largest_square():
    crop = MinimalistCrop(60, "bicubic")
    for seed in range(10):
        torch.manual_seed(seed)
        out = crop(position_image(90, 60), progress=1.0).int()
        assert out[1, :, 0].tolist() == list(range(60))
        assert (out[0, :, 1:] - out[0, :, :-1] == 1).all()


def test_minimalist_cuts_squares_anywhere():
    crop = MinimalistCrop(16, "bilinear")
    lefts, sides = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        out = crop(position_image(200, 100), progress=0.0).float()
        width = float(out[0, 8, -1] - out[0, 8, 0])
        assert width == pytest.approx(float(out[1, -1, 8] - out[1, 0, 8]), abs=2)
        lefts.append(float(out[0, 8, 0]))
        sides.append(width * 16 / 15)
    assert max(lefts) > 150
    # 0.08 of the area is a square of 40, the largest that fits is one of 100.
    assert 35 < min(sides) < 50
    assert max(sides) > 95


# --- evaluation


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (20, 90)])
def test_squashed_images_are_those_of_open_clip(size):
    # As SigLIP was trained: the whole image, squeezed into the square.
    from open_clip.transform import PreprocessCfg, image_transform_v2

    spec = ImageSpec(size=32, squash=True)
    transform = eval_transform(spec)
    assert transform.key == "32_32_bicubic_1crop_squash"
    theirs = image_transform_v2(
        PreprocessCfg(size=32, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode="squash"), is_train=False
    )
    image = photo(*size)
    difference = transform(image).float() - 255 * theirs(image)
    assert difference.abs().max() <= 2  # PIL's and torch's resizing round differently
    assert not torch.equal(transform(image), eval_transform(ImageSpec(size=32))(image))
    assert build_augmentation(spec, "resize") == eval_transform(spec)
    assert eval_transform(spec, crops=5)(image).shape == (5, 3, 32, 32)
    assert eval_transform(spec, resize=40).key == "32_40_bicubic_1crop_squash"


def test_eval_transform_equals_torchvision_on_pil():
    from torchvision.transforms import v2

    reference = v2.Compose([v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32), v2.PILToTensor()])
    for size in ((90, 60), (60, 90), (33, 500), (20, 25)):
        image = photo(*size)
        difference = (reference(image).int() - eval_transform(SPEC)(image).int()).abs()
        assert difference.max() <= 2, size
        assert difference.float().mean() < 0.1, size


def test_defaults_are_those_of_the_field():
    spec = ImageSpec(size=224)
    assert eval_transform(spec) == EvalTransform(224, 256, "bicubic")
    assert eval_transform(spec, crops=5) == EvalTransform(224, 248, "bicubic", 5)
    assert eval_transform(ImageSpec(size=336)).resize == 384
    assert eval_transform(spec, resize=224, interpolation="bilinear").key == "224_224_bilinear_1crop"


def test_five_and_ten_crops():
    image = position_image(50, 40)
    five = eval_transform(SPEC, crops=5, resize=40)(image)
    ten = eval_transform(SPEC, crops=10, resize=40)(image)
    assert five.shape == (5, 3, 32, 32)
    assert ten.shape == (10, 3, 32, 32)
    assert torch.equal(ten[:5], five)
    assert torch.equal(ten[5:].sum(0), five.flip(-1)[[0, 1, 2, 3, 4]].sum(0))
    corners = [tuple(crop[:2, 0, 0].tolist()) for crop in five]
    assert corners == [(0, 0), (18, 0), (0, 8), (18, 8), (9, 4)]
    assert torch.equal(five[4], eval_transform(SPEC, resize=40)(image))


def test_key_tells_transforms_apart():
    variants = [
        EvalTransform(32, 36, "bicubic"),
        EvalTransform(32, 32, "bicubic"),
        EvalTransform(32, 36, "bilinear"),
        EvalTransform(32, 36, "bicubic", 5),
        EvalTransform(32, 36, "bicubic", 1, 0.5),
        EvalTransform(28, 36, "bicubic"),
    ]
    assert len({variant.key for variant in variants}) == len(variants)


@pytest.mark.parametrize("options", [{"crops": 3}, {"resize": 10}, {"interpolation": "box"}])
def test_wrong_eval_options(options):
    with pytest.raises(InputError):
        eval_transform(SPEC, **options)


def test_min_side_leaves_detail():
    assert eval_transform(ImageSpec(size=224)).min_side == 512
    assert build_augmentation(ImageSpec(size=224)).min_side == 792
    assert build_augmentation(ImageSpec(size=224), scale=(0.25, 1)).min_side == 448


def test_spec_interpolation_is_followed():
    spec = ImageSpec(size=32, interpolation="bilinear")
    for name in AUGMENTATIONS:
        assert transforms.build_augmentation(spec, name).interpolation == "bilinear"
