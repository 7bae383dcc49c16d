"""Names, numbers and explanations as people read them, shared by the page, the card and the terminal."""

from __future__ import annotations

METRICS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share of rows answered rightly"),
    "macro_f1": ("Macro F1", "F1 of each label, every label counting the same"),
    "micro_f1": ("Micro F1", "F1 over all decisions, every row counting the same"),
    "subset_accuracy": ("Subset accuracy", "share of rows with all labels right"),
    "hamming_loss": ("Hamming loss", "share of wrong decisions; lower is better"),
    "log_loss": ("Log loss", "cost of the probability given to the truth; lower is better"),
    "ece": ("Calibration error", "gap between confidence and accuracy; lower is better"),
    "roc_auc": ("ROC AUC", "chance that a right row scores above a wrong one, mean over labels"),
    "average_precision": ("Average precision", "precision over all thresholds, mean over labels"),
    "rmse": ("RMSE", "root mean square error, in the target's units; lower is better"),
    "mae": ("MAE", "mean absolute error, in the target's units; lower is better"),
    "r2": ("R²", "share of the target's variance that is explained"),
    "mean": ("Mean of the tasks", "mean of the tasks' own metrics, R² for one that is an error"),
    "spearman": ("Spearman", "agreement of ranks, from -1 to 1"),
}

SPOILED = {
    "noise": "Noise on every pixel",
    "blur": "Blurred over three by three pixels",
    "brightness": "Much brighter",
    "typos": "Typing errors in some words",
}
"""What was done to rows that were spoiled."""

UNKNOWN = "\u2013"
"""Stands where there is no number."""

SHARES = ("accuracy", "macro_f1", "micro_f1", "subset_accuracy")
"""Metrics that read well as percentages."""


def metric_name(name: str) -> str:
    """`macro_f1` as Macro F1; a target's own metric as RMSE of target, a task's as topic: Accuracy."""
    task, dot, own = name.partition(".")
    if dot and own.startswith(tuple(METRICS)):
        return f"{task}: {metric_name(own)}"
    if name in METRICS:
        return METRICS[name][0]
    for known, (title, _) in METRICS.items():
        if name.startswith(f"{known}_"):
            return f"{title} of {name[len(known) + 1 :]}"
    return name.replace("_", " ")


def metric_meaning(name: str) -> str:
    """One phrase, empty for an unknown metric."""
    return METRICS.get(name.rpartition(".")[2], ("", ""))[1]


def headline(name: str, value: float | None) -> str:
    """A metric's value in large type: 93.8 % or 0.274."""
    if value is None:
        return "not known"
    return f"{100 * value:.1f} %" if name.rpartition(".")[2] in SHARES else figure(value)


def figure(value: float | None) -> str:
    """Three decimals below ten, four digits above; an en dash for what is not known."""
    if value is None:
        return UNKNOWN
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def amount(value: float | None) -> str:
    """A count with thousands separated."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as 0.4 s, 42 s, 3 min 20 s or 1 h 05 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: float | None) -> str:
    """Bytes as MiB or GiB."""
    if size is None:
        return UNKNOWN
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def radius_name(radius: float, norm: str) -> str:
    """How far an attack may go: 8/255 a pixel, or l2 0.3."""
    return f"{255 * radius:.3g}/255 a pixel" if norm == "linf" else f"l2 {radius:g}"


def listed(value: object) -> str:
    """Several labels or numbers as one text."""
    if isinstance(value, list):
        return " | ".join(listed(item) for item in value) if value else "(none)"
    return figure(value) if isinstance(value, float) else str(value)
