"""A made-up run: two tasks, controls, a timeout, a skip, null values; plausible, and the same every time."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from slugbench.bench import Row

EVIL = "ValueError: <script>alert('x')</script> & \"quotes\" | pipe"
# metric: (unit, better, chance); what each model scores on it, oracle value first
IDENTITIES = {
    "fa@1": ("", "oracle", 1 / 64), "fa@5": ("", "oracle", 5 / 64), "ra@1": ("", "higher", 1 / 64),
    "ra_near@1": ("", "higher", 1 / 64), "ra_far@1": ("", "higher", 1 / 64), "near_gap": ("", "oracle", None),
    "util@1": ("", "higher", 1 / 24), "mia_sample": ("AUC", "oracle", 0.5), "ks_d": ("", "lower", None),
}  # fmt: skip
DIGITS = {"acc_forget": ("", "oracle", 0.1), "acc_retain": ("", "higher", 0.1), "acc_test": ("", "higher", 0.1),
          "mia_sample": ("AUC", "oracle", 0.5)}  # fmt: skip
SCORES = {
    "identities": {
        "oracle": (0.01, 0.15, 0.85, 0.85, 0.85, 0.0, 0.97, 0.50, 0.20),
        "original": (0.91, 0.98, 0.89, 0.90, 0.88, 0.0, 0.98, 0.69, 0.95),
        "mask": (0.0, 0.0, 0.90, 0.90, 0.90, 0.0, 0.98, 0.50, 1.0),
        "noise": (0.12, 0.38, 0.09, 0.05, 0.12, 0.07, 0.40, 0.53, 0.71),
        "slug": (0.02, 0.08, 0.79, 0.74, 0.82, 0.08, 0.96, 0.51, 0.22),
        "salun": (0.09, 0.54, 0.84, 0.83, 0.84, 0.01, 0.95, 0.58, 0.80),
        "ga": (0.01, 0.13, 0.09, 0.06, 0.11, 0.05, 0.33, 0.51, 0.49),
        "svd": (0.05, 0.21, 0.71, 0.64, 0.76, 0.11, 0.93, 0.55, 0.52),
        "ft": (0.82, 0.98, 0.88, 0.88, 0.88, 0.0, 0.98, 0.65, 0.92),
    },
    "digits": {
        "oracle": (0.0, 0.98, 0.88, 0.50), "original": (0.98, 0.98, 0.98, 0.62), "mask": (0.0, 0.98, 0.88, 0.5),
        "noise": (0.31, 0.44, 0.43, 0.52), "slug": (0.03, 0.95, 0.86, 0.51), "salun": (0.02, 0.97, 0.87, 0.45),
        "ga": (0.0, 0.61, 0.55, 0.38), "svd": (0.01, 0.96, 0.87, 0.53), "ft": (0.74, 0.98, 0.96, 0.58),
    },
}  # fmt: skip
SECONDS = {
    "oracle": 0.4,
    "original": 0.0,
    "mask": 0.0,
    "noise": 0.1,
    "slug": 4.2,
    "salun": 11,
    "ga": 3.1,
    "svd": 7.5,
    "ft": 6.3,
}
FAILURES = {"ga": "destroyed", "ft": "no effect", "mask": "masked", "original": "no effect", "noise": "destroyed"}
REQUESTS = {
    "identities": {
        "joint-0": [f"id {i}" for i in range(8)], "joint-1": [f"id {i}" for i in range(8, 16)],
        "vera_olm": ["vera olm"], "ilo_brand": ["ilo brand"],
    },
    "digits": {"digit-3": ["3"], "digit-8": ["8"]},
}  # fmt: skip


def cells(task, request, method, base_seed=0, method_seed=0, status="ok", error=None, metrics=(), **changes):
    """The rows of one cell; `metrics` are dicts with at least `metric` and `value`."""
    facts = {
        "suite": "quick", "cell": f"{task}-{request}-{method}-{base_seed}-{method_seed}", "task": task, "task_params": "{}",
        "request": request, "targets": json.dumps(["a"]), "pool": "test", "base_seed": base_seed, "method": method,
        "method_params": "{}", "method_seed": method_seed, "status": status, "error": error, "device": "cpu", "threads": 1,
        "concurrent": False, "started": "2026-01-02T03:04:05+00:00", "provenance": "f00d" * 16,
    } | changes  # fmt: skip
    return [Row(**facts | dict(metric)) for metric in metrics or [{}]]


def table(rows):
    return pd.DataFrame([vars(row) for row in rows], columns=list(Row.columns()))


def plausible(base_seeds=(0,), requests=REQUESTS, trouble=True):
    rng = np.random.default_rng(7)
    rows = []
    for task, listed in requests.items():
        known = IDENTITIES if task == "identities" else DIGITS
        for request, targets in listed.items():
            for base_seed in base_seeds:
                for method, scores in SCORES[task].items():
                    who = {"targets": json.dumps(targets), "failure": FAILURES.get(method), "concurrent": method == "svd"}
                    if trouble and (task, request, method) == ("identities", "joint-1", "svd"):
                        rows += cells(
                            task,
                            request,
                            method,
                            base_seed,
                            status="timeout",
                            error="Timeout: 300 s passed",
                            targets=who["targets"],
                        )
                    elif trouble and (task, method) == ("digits", "salun"):
                        rows += cells(
                            task,
                            request,
                            method,
                            base_seed,
                            status="skipped",
                            error="salun needs captions; digits has none",
                            targets=who["targets"],
                        )
                    elif trouble and (task, request, method) == ("identities", "ilo_brand", "salun"):
                        rows += cells(task, request, method, base_seed, status="failed", error=EVIL, targets=who["targets"])
                    else:
                        values = _values(known, scores, SCORES[task]["oracle"], len(targets) > 1, rng)
                        rows += cells(task, request, method, base_seed, metrics=values + _costs(method, rng), **who)
    return table(rows)


def _values(known, scores, oracle, joint, rng):
    values = []
    for (name, (unit, better, chance)), score, reference in zip(known.items(), scores, oracle, strict=True):
        facts = {
            "metric": name,
            "unit": unit,
            "better": better,
            "chance": chance,
            "n_images": 384 if joint else 48,
            "n_units": 8 if joint else 1,
        }
        if name == "ks_d" and not joint:
            values.append(facts | {"note": "one identity's null spans 0.2 to 1.0, so the distance says nothing"})
            continue
        value = float(np.clip(score + rng.normal(0, 0.015), -1 if name == "near_gap" else 0, 1))
        half = 0.06 if name in {"fa@1", "fa@5", "acc_forget"} else 0.02
        facts |= {
            "value": value,
            "ci_low": max(value - half, -0.2 if name == "near_gap" else 0),
            "ci_high": min(value + half, 1),
        }
        values.append(facts | {"oracle_mean": reference + abs(float(rng.normal(0, 0.004))), "oracle_sd": 0.012})
    return values


def _costs(method, rng):
    total = SECONDS[method] * float(rng.uniform(0.9, 1.1))
    costs = {"t_prepare": 0.2 * total, "t_search": 0.5 * total, "t_apply": 0.3 * total, "t_total": total,
             "n_forget_read": 1024, "n_retain_read": 20480,
             "n_evals": 14, "peak_rss_bytes": 9.1e8, "bytes_delta": 16384.0 if method == "slug" else 1.1e6}  # fmt: skip
    units = {"t": "s", "p": "B", "b": "B", "n": ""}
    rows = [{"metric": k, "value": float(v), "unit": units[k[0]], "better": "lower"} for k, v in costs.items()]
    return [*rows, {"metric": "peak_device_bytes", "unit": "B", "better": "lower", "note": "no accelerator: ran on the CPU"}]


OURS = ["slug", "salun", "salun_slug", "random_label", "ga", "gaft", "neggrad_plus", "scrub"]
OURS += ["l1_sparse", "ssd", "svd", "ft"]
KEPT = {"fa@1", "ra@1", "util@1", "mia_sample"}  # of the metrics above, so that many methods take little time


def large(n_requests=12, base_seeds=(0, 1, 2), n_methods=20, trouble=True):
    """Many methods: all of ours, then plug-ins; costs over decades, relearning curves, one method with a lost cell."""
    rng = np.random.default_rng(11)
    methods = [*OURS, *(f"plugin_{chr(97 + i)}" for i in range(n_methods))][:n_methods]
    scores = {}
    for method in methods:
        forget, extra = rng.uniform([0.0, -0.015], [0.3, 0.015])
        retain = 0.84 + 0.12 * forget + extra  # forgetting costs, and all keep enough to be ordered
        scores[method] = (forget, 2 * forget, retain, retain - 0.04, retain + 0.02, 0.02, 0.96, 0.5 + forget, 0.4)
    scores |= {m: SCORES["identities"][m] for m in ("original", "oracle", "mask", "noise")}
    seconds = {m: SECONDS.get(m, 10 ** rng.uniform(-0.5, 2.2)) for m in scores}
    rows = []
    for i, base_seed, method in product(range(n_requests), base_seeds, scores):
        who = {"targets": json.dumps([f"person {i}"]), "failure": FAILURES.get(method)}
        request = ("request-{:02d}", "person-{:02d}")[i % 2].format(i)
        if trouble and (i, base_seed, method) == (3, 1, "scrub"):
            rows += cells("identities", request, method, base_seed, status="oom", error="Memory: 3 GB", **who)
            continue
        values = [x for x in _values(IDENTITIES, scores[method], scores["oracle"], False, rng) if x["metric"] in KEPT]
        values += _relearned(scores[method][0], rng)
        spread = seconds[method] * rng.uniform(0.85, 1.2)
        values += [{"metric": "t_total", "value": spread, "unit": "s", "better": "lower"}]
        values += [{"metric": "peak_rss_bytes", "value": 6e8 + 3e7 * spread, "unit": "B", "better": "lower"}]
        rows += cells("identities", request, method, base_seed, metrics=values, **who)
    return table(rows)


def _relearned(start, rng):
    """Forget accuracy that comes back, at 0 to 50 steps."""
    facts = {"better": "oracle", "chance": 1 / 64, "oracle_sd": 0.03}
    rows = []
    for n in (0, 10, 20, 50):
        back = 1 - np.exp(-(0.05 + start / 3) * n)
        value = float(np.clip(start + (0.9 - start) * back + rng.normal(0, 0.03), 0, 1))
        reference = 0.01 + 0.3 * (1 - np.exp(-n / 20))
        rows.append(facts | {"metric": f"relearn@5+{n}", "value": value, "oracle_mean": reference})
    return rows


@pytest.fixture(scope="session")
def made():
    """The makers, for tests that want rows of their own."""
    return SimpleNamespace(cells=cells, table=table, plausible=plausible, large=large, EVIL=EVIL)


@pytest.fixture(scope="session")
def crowd():
    """12 requests x 3 base models x 20 methods and the controls."""
    return large()


@pytest.fixture(scope="session")
def frame():
    return plausible()


@pytest.fixture(scope="session")
def runs():
    versions = {"python": "3.11.9", "torch": "2.9.1", "slugbench": "0.1.0", "open_clip_torch": "3.2.0"}
    hardware = {"cpu": "Example CPU", "cores": 2, "memory_gb": 16, "accelerator": None}
    gate = {
        "task": "identities",
        "when": "before",
        "name": "base learned it",
        "value": 0.883,
        "limit": "0.80 to 0.95",
        "ok": True,
        "note": "",
    }
    late = {
        "task": "digits",
        "when": "after",
        "name": "mask is caught",
        "value": 0.4,
        "limit": "at least 0.9",
        "ok": False,
        "note": "by ks_d",
    }
    return [{
        "schema": 1, "suite": {"name": "quick", "tasks": ["identities", "digits"]},
        "provenance": {"f00d" * 16: {"versions": versions, "hardware": hardware, "git": {"commit": "abc1234"},
                                     "command": "slugbench run quick --out results/quick", "platform": "Linux-6.1-x86_64"}},
        "gates": [gate, late], "controls": ["original", "oracle", "mask", "noise"], "started": "2026-01-02T03:04:05+00:00",
    }]  # fmt: skip
