"""The spec: round trips, did-you-mean, TOML, `--set`, durations, methods as text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headstart.errors import SpecError
from headstart.spec import MethodSpec, Spec
from headstart.spec.notation import parse_duration, parse_size, parse_value

# What a section may hold --------------------------------------------------------------------------

names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
scalars = st.one_of(st.booleans(), st.integers(-1000, 1000), st.floats(-10, 10, allow_nan=False), st.text(max_size=8))
values = st.one_of(
    scalars, st.none(), st.lists(scalars, max_size=3), st.lists(st.lists(scalars, max_size=2), max_size=2)
)
keys = st.from_regex(r"[a-z][a-z_0-9]{0,6}", fullmatch=True)
methods = st.fixed_dictionaries({"name": names, "options": st.dictionaries(keys, values, max_size=3)})
training = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(0, 50) | st.none(),
        "batch_size": st.integers(1, 512),
        "learning_rate": st.floats(1e-7, 1.0),
        "optimizer": st.sampled_from(["adamw", "adam", "sgd", "lbfgs"]),
        "clip": st.floats(0.1, 10) | st.none(),
        "patience": st.integers(1, 9) | st.none(),
        "seed": st.integers(0, 2**31),
        "time_limit": st.floats(0.1, 1e5) | st.none(),
    },
)
data = st.fixed_dictionaries(
    {},
    optional={
        "train": st.text(max_size=12),
        "label": st.one_of(names, st.lists(names, min_size=1, max_size=3), st.none()),
        "on_bad_row": st.sampled_from(["error", "skip"]),
        "validation_fraction": st.floats(0.01, 0.99),
        "separator": st.sampled_from([";", "|", ","]),
    },
)
stages = st.lists(
    st.fixed_dictionaries({"name": names}, optional={"methods": st.lists(methods, max_size=2), "training": training}),
    max_size=3,
    unique_by=lambda stage: stage["name"],
)
records = st.one_of(
    st.fixed_dictionaries({}, optional={"data": data, "training": training, "methods": st.lists(methods, max_size=3)}),
    st.fixed_dictionaries({}, optional={"data": data, "training": training, "stages": stages}),
)


@given(records)
def test_json_round_trip_gives_the_same_spec(record: dict[str, Any]) -> None:
    spec = Spec.make(record)
    again = Spec.make(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest


@given(records)
def test_what_was_given_is_what_is_kept(record: dict[str, Any]) -> None:
    kept = Spec.make(record).to_json()
    for section in ("data", "training"):
        for key, value in record.get(section, {}).items():
            assert kept[section][key] == value
    if "methods" in record:
        assert kept["methods"] == record["methods"]


@given(methods)
def test_a_method_written_as_text_reads_back(record: dict[str, Any]) -> None:
    method = MethodSpec.model_validate(record)
    assert MethodSpec.parse(str(method)) == method


@given(st.dictionaries(keys, scalars, max_size=3), st.integers(0, 100))
def test_digest_depends_on_the_values_and_not_on_their_order(options: dict[str, Any], seed: int) -> None:
    one = Spec.make({"training": {"seed": seed}, "methods": [{"name": "m", "options": options}]})
    two = Spec.make(
        {"methods": [{"options": dict(reversed(options.items())), "name": "m"}], "training": {"seed": seed}}
    )
    assert one.digest == two.digest
    assert one.digest != Spec.make(one.to_json(), training__seed=seed + 1).digest


def test_the_digest_is_the_same_in_every_process() -> None:
    assert Spec().digest == Spec.make({}).digest == Spec.make().digest
    assert len(Spec().digest) == 64


def test_a_spec_cannot_be_changed() -> None:
    spec = Spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.keep = "best"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.training.seed = 3  # type: ignore[misc]


# From flags ---------------------------------------------------------------------------------------


def test_flat_keys_and_sets_are_planted_in_order() -> None:
    spec = Spec.make(
        {"training": {"epochs": 1, "seed": 7}},
        ["training.epochs=3", "data.label=['a', 'b']", "backbone.pretrained=false", "training.clip=none"],
        training__epochs=2,
        data__text="body",
        data__image=None,
    )
    assert (spec.training.epochs, spec.training.seed, spec.training.clip) == (3, 7, None)
    assert (spec.data.text, spec.data.image, spec.data.label) == ("body", None, ("a", "b"))
    assert spec.backbone.pretrained is False


def test_the_record_that_was_given_is_left_alone() -> None:
    record: dict[str, Any] = {"training": {"epochs": 1}}
    Spec.make(record, ["training.epochs=3"], data__text="body")
    assert record == {"training": {"epochs": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("none", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('"a b"', "a b"),
        ("'3'", "3"),
        ("abc", "abc"),
        ("a=b", "a=b"),
        ("train.csv", "train.csv"),
        ("hf:org/name", "hf:org/name"),
        ("2024-01-01", "2024-01-01"),
        ("", ""),
        ("  7 ", 7),
        ("1\nw = 2", "1\nw = 2"),
    ],
)
def test_values_of_flags(text: str, value: Any) -> None:
    read = parse_value(text)
    assert read == value and type(read) is type(value)


@given(st.text(max_size=20))
def test_any_text_is_a_value(text: str) -> None:
    assert isinstance(parse_value(text), bool | int | float | str | list | dict | None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120), ("0.5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert Spec.make(training__time_limit=text).training.time_limit == seconds
    assert Spec.make(sets=[f"training.time_limit={text}"]).training.time_limit == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10 d", "-5m", "1h30m", "1e3", "m", "nan", "1_0s"])
def test_senseless_durations_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match=r"expected a duration such as 90s, 10m or 1.5h, received"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("2GB", 2_000_000_000), ("1.5 GiB", 1_610_612_736), (" 1 kb ", 1000), ("1TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert Spec.make(training__cache=text).training.cache == text


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "2 apples", "1e3MB", "true"])
def test_senseless_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match=r"expected a size such as 500MB or 2GB, received"):
        parse_size(text)
    with pytest.raises(SpecError, match=r"training.cache: expected auto, off or a size such as 500MB or 2GB, rec"):
        Spec.make(training__cache=text)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("lora", "lora", {}),
        ("lora:", "lora", {}),
        ("lora:r=8,alpha=16", "lora", {"r": 8, "alpha": 16}),
        ("freeze:probe", "freeze", {"probe": True}),
        ("freeze:gradual,decay=0.9", "freeze", {"gradual": True, "decay": 0.9}),
        (" mixup : alpha = 0.2 ", "mixup", {"alpha": 0.2}),
        ("lora:targets=['query', 'value'],r=4", "lora", {"targets": ["query", "value"], "r": 4}),
        ("lora:init=runs/a/adapter", "lora", {"init": "runs/a/adapter"}),
        ("x:a=[[1, 2], [3]],b=1", "x", {"a": [[1, 2], [3]], "b": 1}),
        ('x:a="one, two",b="say \\"hi, there\\""', "x", {"a": "one, two", "b": 'say "hi, there"'}),
        ("x:some-key=1", "x", {"some_key": 1}),
        ("x:a=b=c", "x", {"a": "b=c"}),
    ],
)
def test_methods_as_text(text: str, name: str, options: dict[str, Any]) -> None:
    method = MethodSpec.parse(text)
    assert (method.name, method.options) == (name, options)
    assert Spec.make({"methods": [text]}).methods == (method,)
    assert Spec.make({"methods": text}).methods == (method,), "one alone needs no list"


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"trainig": {}}, "unknown key 'trainig': did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch': did you mean 'epochs'?"),
        ({"epochs": 3}, "unknown key 'epochs': did you mean 'training.epochs'?"),
        ({"text": "body"}, "unknown key 'text': did you mean 'data.text'?"),
        ({"data": {"zzz": 1}}, "unknown key 'data.zzz': known: "),
        (
            {"stages": [{"name": "a", "training": {"epoch": 1}}]},
            "unknown key 'epoch' in stage 'a': did you mean 'epochs'?",
        ),
        ({"stages": [{"name": "a", "method": []}]}, "unknown key 'stages.0.method': did you mean 'methods'?"),
        ({"training": {"epochs": -1}}, "training.epochs: input should be greater than or equal to 0, received -1"),
        ({"training": {"epochs": "many"}}, "training.epochs: input should be a valid integer"),
        ({"training": {"optimizer": "adan"}}, "received 'adan'"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: input should be greater than 0, received 0"),
        ({"data": {"split": "group"}}, "data.split = 'group' needs data.group, the column to split by"),
        ({"data": {"split": "time"}}, "data.split = 'time' needs data.time"),
        ({"methods": ["lora"], "stages": [{"name": "a"}]}, "give either methods or stages, not both"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "stages need different names, received ['a', 'a']"),
        ({"methods": [":r=8"]}, "expected a method as name[:key=value,...], received ':r=8'"),
        ({"methods": 5}, "methods: expected a list of methods such as lora:r=8, received 5"),
        ({"methods": [5]}, "received 5"),
        ({"training": 5}, "training: "),
        ({"stages": [{"name": "a", "training": {"epochs": "many"}}]}, "stage 'a': training.epochs: input should be"),
        (
            {"stages": [{"name": "a", "task": {"label_smoothing": 2}}]},
            "stage 'a': task.label_smoothing: input should be",
        ),
        ({"stages": [{"name": "a", "training": {"time_limit": "soon"}}]}, "expected a duration"),
        ({"data": {"train": {1, 2}}}, "expected plain values in a spec, received set"),
    ],
)
def test_refused_with_one_sentence(record: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec.make(record)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training.epochs", "expected --set section.key=value, received 'training.epochs'"),
        ("training.epochs.x=3", "'training.epochs.x' cannot be set: 'epochs' is a value, not a section"),
        ("training.learning_rat=3", "did you mean 'learning_rate'?"),
        ("=3", "unknown key ''"),
        ("methods.0=lora", "'methods.0' cannot be set: 'methods' is a value, not a section"),
    ],
)
def test_refused_sets(text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec.make({"training": {"epochs": 1}, "methods": ["freeze"]}, [text])
    assert sentence in str(caught.value)


# From files ---------------------------------------------------------------------------------------

TOML = """
keep = "best"

[data]
train = "train.csv"
test = "test.csv"
label = ["a", "b"]

[training]
epochs = 5
time_limit = "10m"

[[stages]]
name = "probe"
methods = ["freeze:probe"]
training = { optimizer = "lbfgs" }

[[stages]]
name = "tune"
methods = ["lora:r=4", { name = "mixup", options = { alpha = 0.2 } }]
"""


def test_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "tickets.toml"
    file.write_text(TOML)
    spec = Spec.read(file, ["training.epochs=2"], training__seed=9)
    assert (spec.training.epochs, spec.training.time_limit, spec.training.seed) == (2, 600, 9)
    assert spec.data.train == "train.csv" and spec.data.label == ("a", "b") and spec.keep == "best"
    assert [stage.name for stage in spec.stages] == ["probe", "tune"]
    assert spec.stages[0].training == {"optimizer": "lbfgs"}
    assert [str(method) for method in spec.stages[1].methods] == ["lora:r=4", "mixup:alpha=0.2"]


def test_the_spec_inside_a_bundle_and_plain_json(tmp_path: Path) -> None:
    spec = Spec.make({"training": {"epochs": 4}, "methods": ["lora:r=2"]})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    (tmp_path / "bundle.json").write_text(json.dumps({"format": 1, "spec": spec.to_json()}))
    assert Spec.read(tmp_path / "spec.json") == spec
    assert Spec.read(str(tmp_path / "bundle.json")) == spec


def test_a_date_in_toml_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[data]\ntrain = 2024-01-31\ntime = "day"\nsplit = "time"\n')
    assert Spec.read(file).data.train == "2024-01-31"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.toml", b"[training\nepochs = 5", "is not valid TOML"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"[1, 2]", "must hold a table of sections, received list"),
        ("a.toml", b"\xff\xfe\x00", "cannot read the spec"),
        ("bundle.json", b'{"spec": 5}', "must hold a table of sections"),
        ("bundle.json", b'{"format": 1}', "holds no spec"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SpecError, match=sentence) as caught:
        Spec.read(file)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read the spec"):
        Spec.read(tmp_path / "absent.toml")


def test_every_key_has_a_default() -> None:
    spec = Spec.make({})
    assert spec == Spec()
    assert spec.methods is None and spec.stages == ()
