from __future__ import annotations

import numpy as np
import pytest
import torch

from dualtail.data.loader import Batch, BatchIndices, ImageDataset, eval_loader, train_loader
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.data.samplers import SAMPLINGS
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.errors import DataError, InputError
from dualtail.imagespec import ImageSpec
from dualtail.process_group import ProcessGroup

SPEC = ImageSpec(size=8)
TRANSFORM = build_augmentation(SPEC)


@pytest.fixture
def manifest(write_tree) -> Manifest:
    """21 images of three classes, of 15, 4 and 2."""
    return read_manifest("folder", write_tree({"train": {"ant": 15, "bee": 4, "cow": 2}}))


def make(manifest: Manifest, **options):
    given = {"batch_size": 4, "seed": 7, "epochs": 3, "workers": 0}
    return train_loader(manifest, TRANSFORM, **{**given, **options})


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        for a, b in zip(left, right, strict=True)
    )


def test_batches(manifest):
    loader = make(manifest)
    batches = list(loader)
    assert len(loader) == len(batches) == 6
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1]
    assert [batch.total for batch in batches] == [4, 4, 4, 4, 4, 1]
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(21))
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch), 3, 8, 8)
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.labels.tolist() == manifest.labels[batch.index.numpy()].tolist()


def test_epochs_differ_and_repeat_exactly(manifest):
    loader = make(manifest)
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    assert same(epochs[0], epochs[2])
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[0], list(make(manifest, seed=8)))


def test_the_state_of_the_global_generator_does_not_matter(manifest):
    torch.manual_seed(1)
    first = list(make(manifest))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, list(make(manifest)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_workers_change_nothing(manifest, sampling):
    """Persistent workers must see the epoch, which decides order, augmentation and sampling."""
    alone, helped = make(manifest, sampling=sampling), make(manifest, sampling=sampling, workers=2)
    for epoch in range(3):
        for loader in (alone, helped):
            loader.set_epoch(epoch)
        assert same(list(alone), list(helped))


def test_minimalist_schedule_reaches_persistent_workers(manifest):
    transform = build_augmentation(SPEC, "minimalist")
    loader = train_loader(manifest, transform, batch_size=21, epochs=2, workers=1)
    sequential = {}
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        (batch,) = loader
        sequential[epoch] = batch
    # In the last epoch the crop is the whole (square) image: nothing is random any more.
    whole = eval_loader(manifest, {"a": eval_transform(SPEC, resize=8)}, batch_size=21, workers=0)
    (everything,) = whole
    assert torch.equal(sequential[1].images, everything.images["a"][sequential[1].index])
    assert not torch.equal(sequential[0].images, everything.images["a"][sequential[0].index])


def test_a_single_epoch_has_no_progress(manifest):
    loader = train_loader(
        manifest, build_augmentation(SPEC, "minimalist"), batch_size=21, epochs=1, workers=0
    )
    (first,) = loader
    longer = train_loader(
        manifest, build_augmentation(SPEC, "minimalist"), batch_size=21, epochs=5, workers=0
    )
    (other,) = longer
    assert torch.equal(first.images, other.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_an_epoch_gives_the_rest_of_it(manifest, workers):
    loader = make(manifest, workers=workers)
    loader.set_epoch(1)
    whole = list(loader)
    loader.set_epoch(1, skip_batches=4)
    assert same(list(loader), whole[4:])
    loader.set_epoch(1, skip_batches=6)
    assert list(loader) == []
    assert len(loader) == 6
    loader.set_epoch(1)
    assert same(list(loader), whole)


def test_skipped_batches_are_not_decoded(manifest, monkeypatch):
    decoded = []
    from dualtail.data import loader as module

    original = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *a: decoded.append(a[0]) or original(*a))
    loader = make(manifest)
    loader.set_epoch(0, skip_batches=4)
    list(loader)
    assert len(decoded) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_in_an_epoch_and_starting_another(manifest, workers):
    loader = make(manifest, workers=workers)
    loader.set_epoch(1)
    expected = list(loader)
    for _batch in loader:
        break
    assert same(list(loader), expected)


@pytest.mark.parametrize(("epoch", "skip"), [(-1, 0), (0, 7), (0, -1)])
def test_epochs_that_do_not_exist(manifest, epoch, skip):
    with pytest.raises(InputError, match="does not exist"):
        make(manifest).set_epoch(epoch, skip_batches=skip)


def test_repeated_draws_are_augmented_anew(manifest):
    loader = make(manifest, sampling="class_balanced", batch_size=21)
    (batch,) = loader
    rows = batch.index.tolist()
    twice = next(row for row in rows if rows.count(row) > 1)
    first, second = [position for position, row in enumerate(rows) if row == twice][:2]
    assert not torch.equal(batch.images[first], batch.images[second])


# --- several processes


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("sampling", ["instance", "class_balanced"])
def test_ranks_share_each_batch(manifest, world_size, sampling):
    single = list(make(manifest, sampling=sampling))
    ranks = [
        list(make(manifest, sampling=sampling, group=ProcessGroup(rank, world_size)))
        for rank in range(world_size)
    ]
    for step, expected in enumerate(single):
        parts = [batches[step] for batches in ranks]
        filled = max(len(expected), world_size)
        assert [part.total for part in parts] == [filled] * world_size
        assert all(len(part) > 0 for part in parts)
        assert sum(len(part) for part in parts) == filled
        joined = [part.index[position] for position in range(4) for part in parts if position < len(part)]
        assert torch.stack(joined)[: len(expected)].tolist() == expected.index.tolist()
        for rank, part in enumerate(parts):
            mine = expected.images[rank::world_size]
            assert torch.equal(part.images[: len(mine)], mine)


@pytest.mark.parametrize("world_size", [1, 2, 3, 25])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_evaluation_loses_and_doubles_nothing(manifest, world_size, batch_size):
    seen = []
    for rank in range(world_size):
        loader = eval_loader(
            manifest,
            {"a": eval_transform(SPEC)},
            batch_size=batch_size,
            workers=0,
            group=ProcessGroup(rank, world_size),
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [row for batch in batches for row in batch.index.tolist()]
    assert seen == list(range(21))


def test_drop_last(manifest):
    assert [len(batch) for batch in make(manifest, drop_last=True)] == [4] * 5
    assert len(make(manifest, drop_last=True, batch_size=100)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"group": ProcessGroup(0, 5)}, "batch_size 4 is less than the 5 processes"),
        ({"sampling": ["instance"]}, "unknown sampling"),
        ({"sampling": "instanc"}, "did you mean 'instance'"),
        ({"workers": -1}, "workers is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"on_bad_image": "ignore"}, "unknown on_bad_image 'ignore'"),
    ],
)
def test_wrong_options(manifest, options, message):
    with pytest.raises(InputError, match=message):
        make(manifest, **options)


def test_empty_split(manifest):
    with pytest.raises(DataError, match="the split has no image"):
        make(manifest.split("val"))


# --- evaluation and bad images


def test_eval_batches_hold_one_tensor_a_transform(manifest, monkeypatch):
    decoded = []
    from dualtail.data import loader as module

    original = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *a: decoded.append(a[0]) or original(*a))
    transforms = {"one": eval_transform(SPEC), "five": eval_transform(ImageSpec(size=6), crops=5)}
    batches = list(eval_loader(manifest, transforms, batch_size=8, workers=0))
    assert [len(batch) for batch in batches] == [8, 8, 5]
    assert batches[2].images["one"].shape == (5, 3, 8, 8)
    assert batches[2].images["five"].shape == (5, 5, 3, 6, 6)
    assert torch.cat([batch.labels for batch in batches]).tolist() == manifest.labels.tolist()
    assert len(decoded) == 21


@pytest.fixture
def broken(manifest) -> Manifest:
    for row in (3, 17):
        with open(manifest.file(row), "wb") as file:
            file.write(b"no image")
    return manifest


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_with_its_name(broken, workers):
    with pytest.raises(DataError) as caught:
        list(make(broken, workers=workers))
    assert "this is no image that Pillow can read" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_can_be_skipped(broken, workers):
    loader = make(broken, workers=workers, on_bad_image="skip")
    batches = list(loader)
    rows = sorted(row for batch in batches for row in batch.index.tolist())
    assert rows == sorted(set(range(21)) - {3, 17})
    assert sorted(loader.skipped) == sorted([broken.paths[3], broken.paths[17]])
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        list(loader)
    assert len(loader.skipped) == 2


def test_skipping_leaves_the_other_images_as_they_were(manifest):
    before = {
        int(row): image
        for batch in make(manifest)
        for row, image in zip(batch.index, batch.images, strict=True)
    }
    with open(manifest.file(3), "wb") as file:
        file.write(b"no image")
    after = make(manifest, on_bad_image="skip")
    for batch in after:
        for row, image in zip(batch.index, batch.images, strict=True):
            assert torch.equal(image, before[int(row)])


def test_results_of_an_evaluation_with_bad_images_stay_in_place(broken):
    loader = eval_loader(broken, {"a": eval_transform(SPEC)}, batch_size=1, workers=0, on_bad_image="skip")
    rows = [int(row) for batch in loader for row in batch.index]
    assert rows == [row for row in range(21) if row not in (3, 17)]
    assert len(loader.skipped) == 2


def test_a_batch_without_any_image(manifest):
    for row in range(21):
        with open(manifest.file(row), "wb") as file:
            file.write(b"no image")
    assert list(make(manifest, on_bad_image="skip")) == []
    with pytest.raises(DataError, match="none of a batch's images could be read"):
        list(make(manifest, on_bad_image="skip", group=ProcessGroup(0, 2)))


def test_large_photographs_are_decoded_smaller(tmp_path):
    from PIL import Image

    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((400, 400))
    for name in "ab":
        pixels.save(tmp_path / f"train/{name}/x.jpg", quality=95)
    manifest = read_manifest("folder", tmp_path)
    transforms = {"a": eval_transform(SPEC)}
    exact, fast = (
        next(iter(eval_loader(manifest, transforms, batch_size=2, workers=0, fast_decode=fast))).images["a"]
        for fast in (False, True)
    )
    assert not torch.equal(exact, fast)
    assert (exact.int() - fast.int()).abs().float().mean() < 3


def test_augmentation_depends_on_seed_epoch_and_place(manifest):
    def crop(seed: int, epoch: int, position: int) -> torch.Tensor:
        indices = BatchIndices(np.array([0]), np.array([position]), epoch, progress=0.0, total=1)
        return ImageDataset(manifest, TRANSFORM, seed=seed)[indices].images

    assert torch.equal(crop(0, 0, 0), crop(0, 0, 0))
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(crop(0, 0, 0), crop(*other)), other
