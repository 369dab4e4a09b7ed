"""The harness: nouns, registry, plan, isolation, store, meter and command line.

Authors of plug-ins import everything they need from here.
"""

from .artifacts import cached, digest, file_digest, gathered
from .errors import BudgetExceeded, GateError, MissingDependency, SlugbenchError, UsageError
from .provenance import RESULT_VERSION
from .registry import method, metric, report, task
from .splits import TensorSplit
from .types import (
    Answers,
    Batch,
    Budget,
    Cost,
    Gate,
    Listed,
    Model,
    Noised,
    Objective,
    Outcome,
    Request,
    Row,
    Scored,
    Scores,
    Scoring,
    Size,
    Split,
    TextToImage,
    Trial,
    TwoTowers,
    Validation,
    Value,
    Wanted,
)

__all__ = [
    "RESULT_VERSION",
    "Answers",
    "Batch",
    "Budget",
    "BudgetExceeded",
    "Cost",
    "Gate",
    "GateError",
    "Listed",
    "MissingDependency",
    "Model",
    "Noised",
    "Objective",
    "Outcome",
    "Request",
    "Row",
    "Scored",
    "Scores",
    "Scoring",
    "Size",
    "SlugbenchError",
    "Split",
    "TensorSplit",
    "TextToImage",
    "Trial",
    "TwoTowers",
    "UsageError",
    "Validation",
    "Value",
    "Wanted",
    "cached",
    "digest",
    "file_digest",
    "gathered",
    "method",
    "metric",
    "report",
    "task",
]
