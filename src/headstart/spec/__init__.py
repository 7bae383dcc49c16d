"""What the user asked for, validated: the spec, its sections, and how single values are written."""

from headstart.spec.spec import (
    BackboneSpec,
    DataSpec,
    EvaluationSpec,
    MemberSpec,
    MethodSpec,
    Spec,
    StageSpec,
    TaskSpec,
)
from headstart.spec.training import TrainingSpec

__all__ = [
    "BackboneSpec",
    "DataSpec",
    "EvaluationSpec",
    "MemberSpec",
    "MethodSpec",
    "Spec",
    "StageSpec",
    "TaskSpec",
    "TrainingSpec",
]
