"""Signals, workers that die and batches of one image: a line, and nothing lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_standins import SyntheticLoader, TinyClassifier, same_bits, state_of
from PIL import Image
from torch import nn

from dualtail.data.loader import Loader, train_loader
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation
from dualtail.engine.checkpoint import read_header
from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.engine.stop import GracefulStop
from dualtail.errors import DataError, DualtailError, Interrupted, TrainingError
from dualtail.imagespec import ImageSpec

SETTINGS = FinetuneSettings(epochs=3, learning_rate=0.1, precision="fp32", checkpoint_minutes=60)


def train(classifier: nn.Module, loader: object, directory: Path | None = None, **options: object) -> object:
    settings = options.pop("settings", SETTINGS)
    return finetune(
        classifier, loader, nn.CrossEntropyLoss(), settings, checkpoint_dir=directory, device="cpu", **options
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_signal_to_stop_saves_and_is_told_by_its_number(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)

    def send(told: object) -> None:
        if told.step == 9:  # type: ignore[attr-defined]
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step 9 ") as caught:
        train(TinyClassifier(), SyntheticLoader(), tmp_path, progress=send)
    assert caught.value.signal == number
    assert read_header(tmp_path)["step"] == 9
    assert signal.getsignal(number) is before


def test_under_nohup_a_terminal_that_goes_away_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop, stop.at_once():
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_is_told_to_who_waits_outside() -> None:
    with GracefulStop() as outer, outer.at_once():
        with pytest.raises(KeyboardInterrupt), GracefulStop() as inner:  # noqa: PT012
            signal.raise_signal(signal.SIGTERM)
            assert inner.requested
            assert not outer.requested
            signal.raise_signal(signal.SIGHUP)
        assert (outer.number, inner.number) == (signal.SIGHUP, signal.SIGHUP)


# Workers.


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 11), ("test", 2)):
        for name in "abcd":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def loader_of(images: Path, workers: int = 1, batch_size: int = 8) -> Loader:
    manifest = read_manifest("folder", images).split("train")
    spec = ImageSpec(8, (0.5,) * 3, (0.5,) * 3, "bilinear")
    return train_loader(manifest, build_augmentation(spec), batch_size=batch_size, epochs=3, workers=workers)


def test_a_killed_worker_saves_and_is_one_line(images: Path, tmp_path: Path) -> None:
    whole, fresh = TinyClassifier(), TinyClassifier()
    train(whole, loader_of(images, workers=0))

    def kill(told: object) -> None:
        if told.step == 7:  # type: ignore[attr-defined]
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(DataError) as caught:
        train(TinyClassifier(), loader_of(images), tmp_path / "resume", progress=kill)
    assert "processes that read images died (" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_header(tmp_path / "resume")["step"] >= 7
    train(fresh, loader_of(images, workers=0), tmp_path / "resume")
    assert same_bits(state_of(whole), state_of(fresh))


def test_workers_leave_signals_to_the_main_process(images: Path) -> None:
    with GracefulStop():
        batches = iter(loader_of(images))
        next(batches)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(worker.pid, number)
        next(batches)
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_machine_is_no_bad_image(
    images: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    import errno

    loader = loader_of(images, workers)
    loader.dataset.on_bad_image = "skip"

    def full(path: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("dualtail.data.images.open_regular", full)
    with pytest.raises(DataError, match=r"png: cannot be used \(Too many open files\); raise the limit"):
        list(loader)


def test_workers_that_cannot_be_started_are_one_line(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(
        DataError, match=r"cannot be used \(Resource temporarily unavailable\); .* fewer workers"
    ):
        list(loader_of(images))


def test_a_fault_in_evaluation_saves(tmp_path: Path) -> None:
    def fail(_: object) -> dict[str, float]:
        raise DataError("no image", where="val")

    with pytest.raises(DataError):
        train(TinyClassifier(), SyntheticLoader(), tmp_path, evaluate=fail)
    assert read_header(tmp_path)["step"] == 7


# A last batch of one image.


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(3 * 64, 4), nn.BatchNorm1d(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1) / 255)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8}, {"cutmix": 1.0}])
def test_a_last_batch_of_one_image_trains(mixing: dict[str, float]) -> None:
    settings = SETTINGS.changed(**mixing)
    assert train(TinyClassifier(), SyntheticLoader(count=17), settings=settings).steps == 9


def test_a_last_batch_of_one_image_under_batch_normalisation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        train(Normalised(), SyntheticLoader(count=17), tmp_path)
    assert str(caught.value).startswith(
        "batch 3 of 3 has a single image, of which batch normalisation can take no"
    )
    assert isinstance(caught.value, DualtailError)


# Events.


def test_events_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"events.*cannot be used \(Not a directory\); a file is where|File exists"
    ):
        train(TinyClassifier(), SyntheticLoader(), events_dir=tmp_path / "file" / "events")

    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with pytest.raises(DataError, match=r"events: cannot be written \(No space left on device\); make room"):
        train(TinyClassifier(), SyntheticLoader(), tmp_path / "resume", events_dir=tmp_path / "events")
