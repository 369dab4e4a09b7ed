"""Checked against tables of counts: what is prompted, what is seen, and how often."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from slugbench.bench import Outcome, Trial, UsageError
from slugbench.bench.intervals import clopper_pearson, interval
from slugbench.metrics.canvas_accuracy import CanvasAccuracy

STYLES = ("ink", "mosaic", "neon", "photo", "plain")
OBJECTS = ("ball", "box", "ring")
SEEDS = 4
STYLE, OBJECT, _ = (axis.ravel() for axis in np.meshgrid(range(5), range(3), range(SEEDS), indexing="ij"))


def outcome(answers, *, target="neon", original=None, oracles=()):
    own = STYLE if target in STYLES else OBJECT
    number = (STYLES if target in STYLES else OBJECTS).index(target)
    split = np.where(own == number, "forget", "retain")
    request = SimpleNamespace(objective=SimpleNamespace(kind="diffusion"), targets=(target,))
    questions = {"split": split, "unit": own, "label": own, "style": STYLE, "object": OBJECT}
    classes = {"style": STYLES, "object": OBJECTS}
    trial = Trial(request, questions, None, original or {}, tuple(oracles), None, 5, joint=False, classes=classes)
    return Outcome(trial, answers, tuple(oracles))


def measured(*args, leave_out="", **named):
    return {value.name: value for value in CanvasAccuracy(leave_out)(outcome(*args, **named))}


def drawn(seed=0, hit=0.7):
    """Classes seen at random, right with probability `hit`."""
    rng = np.random.default_rng(seed)
    wrong = {"style": rng.integers(0, 5, 60), "object": rng.integers(0, 3, 60)}
    return {d: np.where(rng.random(60) < hit, asked, wrong[d]) for d, asked in (("style", STYLE), ("object", OBJECT))}


def confusion(asked, seen, rows, n):
    """Counts, (prompted, seen), of the images in `rows`, one by one."""
    table = [[0] * n for _ in range(n)]
    for i in np.flatnonzero(rows):
        table[asked[i]][seen[i]] += 1
    return table


def accuracy(table, classes):
    """The mean over classes of diagonal over row sum, without rounding."""
    return float(sum(Fraction(table[c][c], sum(table[c])) for c in classes) / len(classes))


@pytest.mark.parametrize("leave_out", ["", "photo"])
@pytest.mark.parametrize("target", ["neon", "box"])
def test_values_are_what_confusion_tables_say_to_the_last_digit(target, leave_out):
    answers, everyone = drawn(), np.array([leave_out != STYLES[s] for s in STYLE])
    domains = {"style": (STYLE, answers["style"], STYLES), "object": (OBJECT, answers["object"], OBJECTS)}
    (asked, seen, names), other = (domains[d] for d in (("style", "object") if target in STYLES else ("object", "style")))
    t, on = names.index(target), asked == names.index(target)
    kept = [c for c, name in enumerate(names) if name not in (target, leave_out)]
    others = [c for c, name in enumerate(other[2]) if name != leave_out]
    table = confusion(asked, seen, everyone, len(names))
    expected = {"ua": 1 - accuracy(table, [t]), "ira": accuracy(table, kept)}
    for name, rows in {"cra": everyone, "cra_on": everyone & on, "cra_off": everyone & ~on}.items():
        expected[name] = accuracy(confusion(*other[:2], rows, len(other[2])), others)
    found = measured(answers, target=target, leave_out=leave_out)
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-15)


def test_the_published_form_weighs_the_two_halves_by_their_prompts():
    """One of five styles is the target's: cra = (cra_on + 4 cra_off) / 5, there being as many images of every prompt."""
    found = {name: value.value for name, value in measured(drawn(seed=2)).items()}
    assert found["cra"] == pytest.approx((found["cra_on"] + 4 * found["cra_off"]) / 5, rel=1e-15)
    assert found["cra_on"] != found["cra_off"]


def test_denominators_are_printed():
    found = measured(drawn(), original={"style": STYLE, "object": OBJECT})
    assert {name: value.n_images for name, value in found.items() if value.value is not None} == {
        **{"ua": 12, "ira": 48, "cra_on": 12, "cra_off": 48, "cra": 60, "ua_conf": 12}
    }
    assert found["ira"].note == "4 styles on prompts of 3 objects" and found["ira"].n_units == 4
    assert found["cra_on"].note == "3 objects on prompts of 1 style" and found["cra_on"].n_units == 3
    assert found["ua"].note == "prompts of neon with 3 objects; the original's is 0.0000"
    without = measured(drawn(), leave_out="photo")
    assert without["ira"].note == "3 styles on prompts of 3 objects, photo left out"
    ua = measured(drawn(), target="box", leave_out="photo")["ua"]
    assert ua.n_images == 16 and ua.note == "prompts of box with 4 styles, photo left out"


def test_a_confusion_row_says_where_the_target_went():
    seen = STYLE.copy()
    seen[STYLE == 2] = [0] * 6 + [1] * 3 + [2] * 3
    conf = measured({"style": seen, "object": OBJECT})["ua_conf"]
    assert conf.value == 0.5 and conf.note == "of 12 images: ink 6, mosaic 3"
    assert np.bincount(conf.arrays["seen"]).tolist() == [6, 3, 3]
    assert interval(conf) == clopper_pearson(6, 12)
    assert measured({"style": STYLE, "object": OBJECT})["ua_conf"].value == 0


def seen_right(n):
    """Of the target's 12 images so many right, the others mosaic."""
    style = STYLE.copy()
    style[STYLE == 2] = [2] * n + [1] * (12 - n)
    return {"style": style, "object": OBJECT}


@pytest.mark.parametrize(("right", "expected"), [(9, 0.0), (2, 0.875), (1, 1.0), (0, 1.125)])
def test_ua_norm_is_the_share_of_the_way_from_the_original_to_the_oracles(right, expected):
    """By hand: original 9 of 12, oracles 0 and 2; so 8 more are wrong on the whole way."""
    value = measured(seen_right(right), original=seen_right(9), oracles=[seen_right(0), seen_right(2)])["ua_norm"]
    assert value.value == pytest.approx(expected)
    low, high = interval(value)
    assert low <= value.value <= high


def test_ua_norm_is_null_where_there_is_no_way_or_nothing_to_compare_with():
    assert "images of the original and of an oracle" in measured(seen_right(3))["ua_norm"].note
    assert "an oracle" in measured(seen_right(3), original=seen_right(9))["ua_norm"].note
    level = measured(seen_right(3), original=seen_right(2), oracles=[seen_right(2)])["ua_norm"]
    assert level.value is None and "no more often than the oracles" in level.note


def test_a_class_that_is_none_cannot_be_left_out_and_the_target_leaves_nothing():
    with pytest.raises(UsageError, match="no class 'fresco' to leave out"):
        measured(drawn(), leave_out="fresco")
    found = measured(drawn(), leave_out="neon")
    assert found["ua"].value is None and found["ua"].note and found["cra_on"].value is None and found["ira"].value


def with_known_pictures(given, wrong):
    """The same outcome with as many pictures to be denoised, half of them trained on, in which all is seen wrong."""
    trial, n = given.trial, len(given.trial.questions["split"])
    known = {name: column.copy() for name, column in trial.questions.items()}
    known["split"] = np.where(np.arange(n) % 2, "forget_train", "forget_unseen")
    questions = {name: np.concatenate([column, known[name]]) for name, column in trial.questions.items()}
    answers = {name: np.concatenate([column, np.full(n, wrong)]) for name, column in given.answers.items()}
    return Outcome(replace(trial, questions=questions), answers, ())


@pytest.mark.parametrize("leave_out", ["", "photo"])
def test_pictures_to_be_denoised_are_none_that_were_drawn(leave_out):
    given = outcome(drawn() | {"second_style": STYLE, "second_object": OBJECT})
    metric = CanvasAccuracy(leave_out)
    found, beside = metric(given), metric(with_known_pictures(given, wrong=-1))
    assert [(v.name, v.value, v.n_images) for v in beside] == [(v.name, v.value, v.n_images) for v in found]


@pytest.mark.parametrize(("target", "expected", "n_units"), [("neon", 1 - 3 / 12 / 5, 5), ("box", 1 - 5 / 20 / 3, 3)])
def test_two_classifiers_agree_where_they_see_the_same_right_or_wrong(target, expected, n_units):
    """By hand: apart on 3 of 12 images of one style of five, and on 5 of 20 of one object of three."""
    first, second = drawn(), {}
    for domain, asked, number, apart in (("style", STYLE, 1, 3), ("object", OBJECT, 0, 5)):
        second[f"second_{domain}"] = first[domain].copy()
        second[f"second_{domain}"][np.flatnonzero(asked == number)[:apart]] = -1
    value = measured(first | second, target=target)["clf_ok"]
    assert value.value == pytest.approx(expected) and (value.n_images, value.n_units) == (60, n_units)
    low, high = interval(value)
    assert low <= value.value <= high and value.better == "higher" and "original" not in value.note


def test_the_note_on_agreement_has_the_originals_and_without_a_second_opinion_there_is_none():
    one = {"style": STYLE, "object": OBJECT}
    other = {"second_style": np.where(STYLE == 0, 1, STYLE), "second_object": OBJECT}
    value = measured(one | {"second_style": STYLE}, original=one | other)["clf_ok"]
    assert value.value == 1 and value.note == "5 styles; the original's is 0.8000"
    assert "clf_ok" not in measured(one, original=one | other)


def test_models_that_make_no_images_have_none_of_it(trial):
    assert CanvasAccuracy()(Outcome(trial, trial.original, trial.oracles)) == []
