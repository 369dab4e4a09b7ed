"""The laws of `test_conformance` for a task whose data are made by a test, and so are not there when laws are collected."""

import inspect

import pytest

from .. import test_conformance as conformance

OF_CLASSES = (
    conformance.test_trials_ask_aligned_questions,
    conformance.test_answers_are_aligned_finite_and_agree_with_the_labels,
    conformance.test_the_original_answers_as_the_trial_says,
    conformance.test_train_and_validation_samples_are_disjoint_and_targets_add_up,
    conformance.test_the_objective_speaks_of_the_model_it_is_for,
    conformance.test_relabelling_gives_every_sample_another_label_and_the_same_image,
    conformance.test_a_masked_model_never_answers_the_targets,
    conformance.test_validate_scores_what_the_objective_answers,
    conformance.test_requests_say_what_may_be_spent_and_where_to_stop,
    conformance.test_some_rows_are_answered_as_among_all,
    conformance.test_trials_that_show_features_have_one_row_an_image_and_give_the_original_anew,
    conformance.test_every_build_hands_out_a_model_of_its_own,
)
OF_SAMPLES = (
    *(law for law in OF_CLASSES if "kind" in inspect.signature(law).parameters),
    conformance.test_samples_to_be_forgotten_are_their_own_validation_and_question_and_no_target,
)


def holds(law, task, kind: str, monkeypatch: pytest.MonkeyPatch, request_id: str | None = None) -> None:
    """Run one law on a request of a task, by default its first one for development."""
    ids = [r.id for r in task.requests() if r.pool == "dev" and bool(r.targets) == (kind == "concepts")]
    asked = request_id or ids[0]
    monkeypatch.setattr(conformance, "make", lambda entry: task)
    monkeypatch.setattr(conformance, "built", lambda entry, kind="concepts": task.build(asked, task.base_seeds[0]))
    law(None, *([kind] if "kind" in inspect.signature(law).parameters else []))
