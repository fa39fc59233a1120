from __future__ import annotations

import numpy as np
import pytest

from dualtail.errors import DataError, InputError
from dualtail.lab.captions import Vocabulary
from dualtail.lab.corpus import draw, draw_corpus, draw_factors
from dualtail.lab.render import FACTOR_VALUES, render
from dualtail.lab.world import Foundation, Pretraining, World, read_world


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_codes_keep_their_distance(distance: int) -> None:
    codes = World(classes=40, min_distance=distance, seed=3).codes
    apart = (codes[:, None] != codes[None]).sum(-1)
    assert apart[~np.eye(len(codes), dtype=bool)].min() >= distance


def test_more_codes_than_there_are() -> None:
    with pytest.raises(InputError, match="only 2 codes at a distance of 2"):
        World(classes=5, min_distance=2, factors={"shape": 2, "colour": 2}).codes  # noqa: B018


def test_several_hundred_classes() -> None:
    world = World(classes=400)
    assert len({tuple(code) for code in world.codes}) == 400
    assert len(set(world.class_names)) == 400
    assert list(world.class_names) == sorted(world.class_names)


def test_bayes_accuracy_is_what_the_best_classifier_reaches() -> None:
    world = World(classes=30, resample=0.25, min_distance=1, seed=1)
    labels = np.repeat(np.arange(30), 2000)
    factors = draw_factors(world, labels, np.random.default_rng(0))
    sizes = np.array(list(world.factors.values()))
    match = factors[:, None] == world.codes[None]
    scores = np.log(np.where(match, 1 - world.resample, 0) + world.resample / sizes).sum(-1)
    reached = (scores.argmax(1) == labels).mean()
    assert reached == pytest.approx(world.bayes_accuracy, abs=0.005)  # standard error 0.002
    assert world.bayes_accuracy < 0.9


def test_priors_are_long_tails_of_their_own() -> None:
    world = World(classes=50)
    one, other = (world.label_prior(Foundation(prior=n, ratio=100)) for n in (0, 1))
    assert one.sum() == pytest.approx(1)
    assert one.max() / one.min() == pytest.approx(100)
    assert np.array_equal(np.sort(one), np.sort(other))
    assert not np.array_equal(one, other)
    assert np.array_equal(one, world.label_prior(Foundation(prior=0, ratio=100, seed=5)))


def test_the_loss_is_planted_in_the_tail_only() -> None:
    world = World(classes=12, resample=0.0, pretraining=Pretraining(images=6000))
    foundation = Foundation(ratio=3, lost=["colour"])
    lossy = world.lossy_classes(foundation)
    assert lossy.sum() == 4
    assert world.label_prior(foundation)[lossy].max() < world.label_prior(foundation)[~lossy].min()
    corpus = draw_corpus(world, foundation)
    kept = corpus.factors == world.codes[corpus.labels]
    colour = world.factor_names.index("colour")
    others = np.arange(len(world.factors)) != colour
    assert kept[:, others].all()
    assert kept[~lossy[corpus.labels], colour].all()
    assert kept[lossy[corpus.labels], colour].mean() == pytest.approx(1 / 6, abs=0.05)


@pytest.mark.parametrize("name", FACTOR_VALUES)
def test_every_factor_value_looks_different_in_any_company(name: str) -> None:
    names = tuple(FACTOR_VALUES)
    column = names.index(name)
    for company in np.random.default_rng(0).integers(0, 6, (40, len(names))):
        factors = np.tile(company, (6, 1))
        factors[:, column] = np.arange(6)
        # The same place, phase and brightness in each: only the factor differs.
        images = [
            render(row[None], names, np.random.default_rng(0), noise=0.0)[0].astype(float) for row in factors
        ]
        apart = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
        assert min(apart) > 2, company  # of 255 levels; the noise has 20 a pixel, averaged over 3,072


def test_images_follow_from_the_seed() -> None:
    world = World(classes=5, pretraining=Pretraining(images=50))
    first, again, other = (draw_corpus(world, Foundation(seed=s)) for s in (0, 0, 1))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_captions_tell_what_is_shown() -> None:
    world = World(classes=8)
    words = Vocabulary(world)
    sample = draw(world, np.arange(8), np.random.default_rng(0))
    captions = words.captions(world, sample.labels, sample.factors, np.random.default_rng(1))
    for tokens, label, factors in zip(captions, sample.labels, sample.factors, strict=True):
        said = [words.words[token] for token in tokens]
        shown = {FACTOR_VALUES[name][value] for name, value in zip(world.factor_names, factors, strict=True)}
        assert world.class_names[label] in said
        assert len(shown & set(said)) == 2
        # CLIP takes the text feature at the largest token.
        assert said[int(tokens.argmax())] == "<end>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: 60\nfoundations: {a: {raito: 10}}", "did you mean 'ratio'"),
        ("factors: {smell: 3}", "unknown factor 'smell'"),
        ("factors: {shape: 60}", "factor shape has 2 to 6 values"),
        ("foundations: {a: {lost: [smell]}}", "loses 'smell'"),
        ("resample: 2", "resample"),
        ("classes: [", "cannot be read"),
    ],
)
def test_mistakes_in_a_world_file(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "world.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_world(path)
    assert "\n" not in str(caught.value)
