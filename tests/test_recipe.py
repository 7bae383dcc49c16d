"""Which stages the default recipe runs, and that the user's own settings always win."""

from __future__ import annotations

from headstart.recipe import NAME_ROWS, expand
from headstart.spec import Spec


def stages(spec: Spec | None = None, **facts: object) -> list[str]:
    settings = {"task": "classification", "modality": "text", "rows": 9000, "outputs": 77, "validated": True, **facts}
    return [stage.name for stage in expand(spec or Spec(), **settings).stages]  # type: ignore[arg-type]


def test_many_rows_probe_then_finetune_and_keep_the_better() -> None:
    assert stages() == ["probe", "finetune"]
    expanded = expand(Spec(), task="classification", modality="text", rows=9000, outputs=77, validated=True)
    assert expanded.keep == "best"
    assert expanded.stages[1].task == {"label_smoothing": 0.1}


def test_very_few_rows_contrast_then_probe() -> None:
    assert stages(rows=32, outputs=4, validated=False) == ["contrast", "probe"]
    assert stages(rows=16, outputs=2, validated=False) == ["contrast", "probe"]
    assert stages(rows=16, outputs=2, validated=False, modality="image") == ["probe"]


def test_few_texts_whose_labels_are_names_get_them_as_rows_of_the_probe() -> None:
    facts = {"task": "classification", "modality": "text", "rows": 32, "outputs": 4, "validated": False}
    made = expand(Spec(), named=True, **facts).stages  # type: ignore[arg-type]
    assert [stage.training.get("name_rows") for stage in made] == [None, NAME_ROWS]
    nameless = expand(Spec(), named=False, **facts).stages  # type: ignore[arg-type]
    assert "name_rows" not in nameless[1].training
    off = expand(Spec.make(training__name_rows=0), named=True, **facts).stages  # type: ignore[arg-type]
    assert "name_rows" not in off[1].training
    picture = expand(Spec(), named=True, **{**facts, "modality": "image"}).stages  # type: ignore[arg-type]
    assert "name_rows" not in picture[0].training


def test_numbers_and_several_labels_have_no_classes_to_contrast() -> None:
    assert stages(task="regression", rows=50, outputs=1, validated=False) == ["probe", "finetune"]
    made = expand(Spec(), task="multilabel", modality="text", rows=5000, outputs=5, validated=True)
    assert [m.name for m in made.stages[1].methods] == ["freeze", "ema"]


def test_without_validation_rows_the_last_stage_is_kept() -> None:
    made = expand(Spec(), task="classification", modality="text", rows=770, outputs=77, validated=False)
    assert made.keep == "last"
    assert made.stages[1].training["batches"] == "pairs"


def test_the_users_numbers_win() -> None:
    spec = Spec.make(training__epochs=2, training__learning_rate=1e-5, training__batch_size=8)
    made = expand(spec, task="classification", modality="text", rows=9000, outputs=77, validated=True)
    assert not {"epochs", "learning_rate", "batch_size"} & set(made.stages[1].training)


def test_named_methods_are_one_stage_and_stages_are_left_alone() -> None:
    assert stages(Spec.make(methods=["lora:r=4", "mixup"])) == ["lora+mixup"]
    assert stages(Spec.make(methods=[])) == ["finetune"]
    assert stages(Spec.make(stages=[{"name": "a"}, {"name": "b"}])) == ["a", "b"]


def test_a_probe_alone_is_solved_exactly_unless_the_user_says_how_to_train_it() -> None:
    facts = {"task": "classification", "modality": "text", "rows": 900, "outputs": 3, "validated": True}
    exact = expand(Spec.make(methods=["freeze:probe"]), **facts).stages[0]  # type: ignore[arg-type]
    assert exact.training == {"optimizer": "lbfgs"}
    trained = expand(Spec.make(methods=["freeze:probe"], training__epochs=3), **facts).stages[0]  # type: ignore[arg-type]
    assert trained.training == {}


def test_expanding_twice_changes_nothing_and_survives_json() -> None:
    facts = {"task": "classification", "modality": "text", "rows": 900, "outputs": 3, "validated": True}
    once = expand(Spec(), **facts)  # type: ignore[arg-type]
    assert expand(once, **facts) == once  # type: ignore[arg-type]
    assert Spec.make(once.to_json()) == once
    assert Spec.make(once.to_json()).digest == once.digest
