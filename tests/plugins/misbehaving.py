"""Methods, and a metric, that break rules; `expected_failures` says which test has to notice."""

from dataclasses import dataclass
from typing import ClassVar

from slugbench.bench import BudgetExceeded, Model, Outcome, Request, Value, method, metric


@method("draws_elsewhere")
@dataclass(frozen=True)
class DrawsElsewhere:
    """Take randomness from torch's global generator."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_methods_draw_from_the_requests_generator_alone": "its noise is another in every process",
    }

    def __call__(self, request: Request) -> Model:
        import torch

        with torch.no_grad():
            for parameter in request.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        return request.model


@method("overspends")
@dataclass(frozen=True)
class Overspends:
    """Catch the budget's refusal and go on, and take more optimiser steps than allowed."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_methods_stay_within_the_budget_of_a_request": "its steps are twice the budget's",
        "test_methods_finish_on_a_tiny_budget_or_are_stopped_by_it_at_once": "it will not take no for an answer",
    }

    def __call__(self, request: Request) -> Model:
        import torch

        optimizer = torch.optim.SGD(request.model.parameters(), lr=1e-4)
        for _ in range(2 * request.budget.max_steps):
            try:
                next(request.retain.batches(8, request.generator))
                request.validate(request.model)
            except BudgetExceeded:
                continue
            optimizer.step()
        return request.model


@method("rebuilds")
@dataclass(frozen=True)
class Rebuilds:
    """Return a model of another make, in training mode."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_methods_return_a_finite_model_in_eval_mode": "it is in training mode",
        "test_methods_keep_the_architecture": "its parameters have other names",
    }

    def __call__(self, request: Request) -> Model:
        import torch

        return torch.nn.Sequential(request.model, torch.nn.Dropout(0.5)).train()


@method("vandalizes")
@dataclass(frozen=True)
class Vandalizes:
    """Edit the samples it was lent, through a door that is not in the contract."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_methods_leave_the_original_and_the_data_alone": "it blanks the kept images",
    }

    def __call__(self, request: Request) -> Model:
        vars(request.retain)["_split"].tensors["image"].zero_()
        return request.model


@method("shrugs")
@dataclass(frozen=True)
class Shrugs:
    """Skip without a reason worth reading."""

    expected_failures: ClassVar[dict[str, str]] = {"test_a_skip_is_a_sentence": "'no' is no sentence"}

    def skips(self, request: Request) -> str | None:
        return "no" if request.budget.max_steps else None

    def __call__(self, request: Request) -> Model:
        return request.model


@metric("misreports")
@dataclass(frozen=True)
class Misreports:
    """Give a null without a note, a value that its arrays do not have, an oracle another; overwrite the answers."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_values_are_finite_or_null_with_a_note": "a null value says nothing",
        "test_values_are_what_their_arrays_say": "it says 0.9 of zeros",
        "test_metrics_leave_the_outcome_alone": "it reverses the scores",
        "test_oracles_are_measured_by_the_same_values_as_the_models_they_judge": "an oracle gets another value",
    }

    def __call__(self, outcome: Outcome) -> list[Value]:
        outcome.answers["score"][:] = -outcome.answers["score"]
        unit = outcome.trial.questions["unit"]
        arrays = {"x": 0.0 * unit, "unit": unit}
        wrong = Value("wrong", 0.9, n_images=len(unit), n_units=len(set(unit.tolist())), arrays=arrays)
        return [Value("silent" if outcome.cost else "mute", None), wrong]
