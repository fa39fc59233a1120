from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dualtail.engine.settings import FinetuneSettings, TrainingChoices
from dualtail.errors import InputError, RecipeError
from dualtail.runs.choices import find_choice_faults
from dualtail.runs.recipe_file import apply_override, dump_recipe, parse_recipe, read_recipe
from dualtail.runs.stages.finetune import finetune_settings

MINIMAL = {"name": "birds", "data": {"root": "/data"}, "members": [{"backbone": "timm:vit_tiny"}]}


def with_key(dotted: str, value: object) -> dict:
    content = MINIMAL
    return apply_override(content, f"{dotted}={yaml.safe_dump(value, default_flow_style=True).strip()}")


def test_the_defaults_are_lifts_recipe():
    recipe = parse_recipe(MINIMAL)
    tuned = recipe.finetune
    assert (tuned.tuner.name, tuned.head.name, tuned.loss.name) == ("adaptformer", "cosine", "la")
    assert (tuned.optimizer, tuned.learning_rate, tuned.momentum, tuned.weight_decay) == (
        "sgd",
        0.01,
        0.9,
        5e-4,
    )
    assert (tuned.epochs, tuned.batch_size, tuned.schedule) == (10, 128, "cosine")


def test_a_resolved_recipe_reads_back_equal(tmp_path: Path):
    recipe = parse_recipe({**MINIMAL, "data": {"root": "/data", "long_tail": {"ratio": 50.0}}})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({**MINIMAL, "finetun": {}}, "recipe: unknown key finetun; did you mean finetune?"),
        (
            {**MINIMAL, "finetune": {"epohcs": 3}},
            "recipe: unknown key finetune.epohcs; did you mean finetune.epochs?",
        ),
        (
            {**MINIMAL, "members": [{"backbone": "timm:x", "weight": "random"}]},
            "recipe: unknown key members.0.weight; did you mean members.0.weights?",
        ),
        ({**MINIMAL, "seed": "0"}, "recipe: seed is '0'; it should be an integer"),
        (
            {**MINIMAL, "finetune": {"precision": "bf16"}},
            "recipe: finetune.precision is called runtime.precision now; move it there",
        ),
        (
            {**MINIMAL, "finetune": {"warmup_epochs": 11}},
            "recipe: finetune: warmup_epochs (11) must not exceed epochs (10)",
        ),
        (
            {**MINIMAL, "finetune": {"epochs": 0}},
            "recipe: finetune.epochs is 0; it should be greater than 0",
        ),
        (
            {**MINIMAL, "finetune": {"optimizer": "adam"}},
            "recipe: finetune.optimizer is 'adam'; it should be 'sgd' or 'adamw'",
        ),
        ({**MINIMAL, "members": []}, "recipe: members is []; it should be a list of at least 1"),
        ({"name": "x", "members": MINIMAL["members"]}, "recipe: data is missing; add it"),
        (
            {**MINIMAL, "evaluate": {"groups": {"few": 200}}},
            "recipe: evaluate.groups: few (200) must not exceed many (100)",
        ),
        (
            {**MINIMAL, "adjust": {"weights": "fited"}},
            "recipe: adjust.weights is 'fited'; it should be 'uniform' or 'fitted' or a list",
        ),
    ],
)
def test_each_fault_has_its_line(content: dict, line: str):
    with pytest.raises(RecipeError) as error:
        parse_recipe(content)
    assert str(error.value) == line
    assert len(error.value.faults) == 1


def test_all_faults_are_kept():
    with pytest.raises(RecipeError) as error:
        parse_recipe(
            {"name": "x", "data": {"root": ".", "raeder": "csv"}, "finetune": {"learning_rate": -1.0}}
        )
    faults = error.value.faults
    assert len(faults) == 3
    assert any("did you mean data.reader?" in fault for fault in faults)
    assert any(fault.startswith("members is missing") for fault in faults)


def test_paths_are_taken_from_the_file_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (folder / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "x",
                "data": {"root": "birds"},
                "members": [
                    {"backbone": "open_clip:./tiny", "weights": "random"},
                    {"backbone": "timm:a", "weights": "w"},
                ],
            }
        )
    )
    recipe = read_recipe(folder / "r.yaml")
    assert recipe.data.root == str(folder / "birds")
    assert recipe.members[0].backbone == f"open_clip:{folder / 'tiny'}"
    assert recipe.members[0].weights == "random"
    assert recipe.members[1].weights == str(folder / "w")
    assert read_recipe(folder / "r.yaml", ["data.root=here"]).data.root == str(elsewhere / "here")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\nname: y\n", "line 2: is not valid YAML: key 'name' is given twice"),
        ("name: [x\n", "is not valid YAML"),
        ("- a\n", "is not a mapping of keys"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, line: str):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=str(path)) as error:
        read_recipe(path)
    assert line in str(error.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(RecipeError, match="no such file"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("finetune.epochs", "is not of the form key=value"),
        ("name.x=1", "name is a single value, which has no key 'x'"),
        ("members.3.weights=random", "members is a list of 1, which has no item '3'"),
        ("=3", "is not of the form key=value"),
    ],
)
def test_broken_overrides(override: str, line: str):
    with pytest.raises(RecipeError) as error:
        apply_override(MINIMAL, override)
    assert str(error.value).startswith(f"--set {override}: {line}")


@given(
    st.sampled_from(["finetune.learning_rate", "seed", "name", "members.0.name", "data.root"]),
    st.text("abc019.-", min_size=1),
)
def test_an_override_sets_its_key_and_nothing_else(key: str, value: str):
    changed = apply_override(MINIMAL, f"{key}={value}")
    place = changed
    for part in key.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    assert str(place) == str(yaml.safe_load(value)) or isinstance(place, float)
    assert MINIMAL == {"name": "birds", "data": {"root": "/data"}, "members": [{"backbone": "timm:vit_tiny"}]}


def test_scientific_notation_is_a_number():
    assert apply_override(MINIMAL, "finetune.learning_rate=1e-3")["finetune"]["learning_rate"] == 0.001


OTHER_CHOICES = {
    "epochs": 3, "accumulation": 2, "optimizer": "adamw", "learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.1,
    "schedule": "constant", "schedule_step": "step", "warmup_epochs": 1.0, "gradient_clip": 2.0, "ema_decay": 0.5,
    "mixup": 0.1, "cutmix": 0.2, "keep": "best", "compile": True,
}  # fmt: skip


def test_every_choice_of_training_reaches_the_engine():
    assert OTHER_CHOICES.keys() == TrainingChoices.model_fields.keys()
    assert all(TrainingChoices.model_fields[key].default != value for key, value in OTHER_CHOICES.items())
    runtime = {"precision": "bf16", "checkpoint_minutes": 7.0}
    settings = finetune_settings(
        parse_recipe({**MINIMAL, "finetune": OTHER_CHOICES, "runtime": runtime}), seed=4
    )
    expected = {**OTHER_CHOICES, **runtime, "seed": 4}
    assert {key: getattr(settings, key) for key in expected} == expected


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
@pytest.mark.parametrize("ema_decay", [0.0, 1.0])
def test_recipe_and_engine_refuse_the_same_values(momentum: float, ema_decay: float):
    for choice in ({"momentum": momentum}, {"ema_decay": ema_decay}):
        with pytest.raises(RecipeError) as of_recipe:
            parse_recipe({**MINIMAL, "finetune": choice})
        with pytest.raises(InputError) as of_engine:
            FinetuneSettings(**choice)
        assert str(of_recipe.value).removeprefix("recipe: finetune.") == str(of_engine.value).removeprefix(
            "settings: "
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.reader", "foldr"),
        ("data.options", {"trian": "x"}),
        ("finetune.tuner", {"name": "lor"}),
        ("finetune.head", {"name": "cosin"}),
        ("finetune.loss", {"name": "la", "options": {"tua": 1.0}}),
        ("finetune.second_stage", {"loss": {"name": "c"}}),
        ("finetune.augment", {"name": "resiz"}),
        ("finetune.sampling", "instanc"),
    ],
)
def test_a_fault_of_a_name_or_an_option_says_where_it_stands(key: str, value: object):
    section, _, name = key.partition(".")
    content = {**MINIMAL, section: {**MINIMAL.get(section, {}), name: value}}
    (fault,) = find_choice_faults(parse_recipe(content))
    assert fault.startswith(key), fault
