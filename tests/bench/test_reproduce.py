"""`slugbench reproduce`, and a plan of which some tasks lack what they run on."""

import math
import re
import shlex
import tomllib

import pytest

from slugbench.bench import MissingData, NotFetched, UsageError
from slugbench.bench.cli import main, parser
from slugbench.bench.plan import Suite, expand, load_suite, reproductions, suite_text
from slugbench.bench.registry import REGISTRY, load
from slugbench.tasks._cifar import CIFAR10, CIFAR100

from ..toys import TOY_TASK, restored_registry

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """A machine without any data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_reproductions_are_the_suites_that_evaluate_as_papers_did():
    load()
    canvas = {"unlearncanvas", "unlearncanvas-objects"}
    assert set(reproductions()) == {"clip-celeba", "cifar10-random10", "cifar10-class", "imagenet-class", *canvas}
    for name in reproductions():
        suite = load_suite(name)
        assert suite.name == name
        for text in suite.tasks:
            spec, _, rest = text.partition(":")
            assert REGISTRY.create("task", spec, dict(p.split("=") for p in rest.split(","))).protocol == "published"


def test_a_reproduction_says_what_is_missing_and_the_commands_to_run(capsys):
    assert main(["reproduce", "clip-celeba", "--device", "cpu"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("clip-celeba: slug:variant=openclip,batch=16,stop=reference, salun_slug:")
    assert lines[1] == "  of celeba: Elon_Musk, Jeff_Bezos, Mark_Zuckerberg, Taylor_Swift, Kim_Kardashian"
    assert lines[2].startswith("suite clip-celeba: ") and lines[2].endswith(" done; 1 of 1 tasks lack something yet:")
    data = re.search(r"`(slugbench doctor celeba:data=\S+)` says what is needed", lines[3])
    assert data and shlex.split(data[1])[2] == "celeba:data=data/celeba"
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  slugbench ")]
    assert [command[0] for command in commands] == ["doctor", "run"]
    for command in commands:
        parser().parse_args(command)


def test_a_task_of_one_protocol_needs_not_name_it(capsys):
    assert main(["reproduce", "unlearncanvas", "--device", "cpu"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unlearncanvas: esd:learning_rate=1e-5,steps=1000,")
    assert lines[1].startswith("  of unlearncanvas: Abstractionism, Artist_Sketch, ")
    assert lines[2].startswith("suite unlearncanvas: ") and "data has no folder for 51 of 51 styles" in lines[3]
    assert "  slugbench run unlearncanvas --out runs/unlearncanvas" in lines


def test_its_suite_is_written_once_and_changes_to_it_are_kept(tmp_path, capsys):
    for _ in range(2):
        assert main(["reproduce", "cifar10-class", "--out", "mine"]) == 2
        assert "  slugbench run mine/cifar10-class.toml --out runs/cifar10-class" in capsys.readouterr().out.splitlines()
    written = tmp_path / "mine" / "cifar10-class.toml"
    assert written.read_text() == suite_text("cifar10-class")
    written.write_text(written.read_text().replace("protocol=published,", "protocol=published,data=elsewhere,"))
    assert main(["reproduce", "cifar10-class", "--out", "mine"]) == 2
    assert "data=elsewhere" in capsys.readouterr().out and "data=elsewhere" in written.read_text()


def test_an_unknown_experiment_has_a_near_one(capsys):
    assert main(["reproduce", "clip-celebs"]) == 2
    assert "'clip-celebs' to repeat (did you mean 'clip-celeba'?); there is cifar10-class, " in capsys.readouterr().err


def test_the_plan_of_paper_says_of_each_task_what_it_lacks(capsys):
    assert main(["plan", "paper", "--device", "cpu"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith(" cells on cpu, 0 done; 5 of 5 tasks lack something yet:")
    tasks = ["celeba", "imagenet", "cifar10", "cifar100", "imagenet_class"]
    assert [line.split(":")[0].strip() for line in out[1:6]] == tasks


def test_a_plan_counts_cells_and_bounds_their_time_without_any_data(capsys, monkeypatch):
    """Ten people, seven objects, cifar10's (6 classes and 12 draws), cifar100's (10 and 12), ten classes of ImageNet; 18
    methods of which 14 have two further seeds, and for both CIFARs two further base models. None may take more than 12 h."""
    monkeypatch.setattr("slugbench.bench.commands._places", lambda suite, device: 4)
    classes = [sum(pool == "test" for pool in facts.pools.values()) for facts in (CIFAR10, CIFAR100)]
    requests = 10 + 7 + 10 + sum(n + 12 for n in classes)
    cells = requests * (18 + 14 * 2) + sum(n + 12 for n in classes) * 18 * 2
    assert main(["plan", "paper", "--device", "cpu"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"suite paper: {cells} cells on cpu")
    days = math.ceil(cells * 12 / 4 / 24)
    assert out[6] == (
        f"  time: {cells} cells are of kinds never timed: at most {days} days, 4 at a time, "
        "since none may take more than 12 h; better known when some are done"
    )


SUITES = ("paper", "clip-celeba", "cifar10-random10", "cifar10-class", "imagenet-class", "unlearncanvas")


@pytest.mark.parametrize("name", [*SUITES, "unlearncanvas-objects"])
def test_everything_a_suite_names_is_there_with_those_parameters(name, monkeypatch):
    """As it would be with the data: fingerprints stand in for what only data can say."""
    load()
    for task in ("celeba", "imagenet", "cifar10", "cifar100", "imagenet_class", "unlearncanvas"):
        monkeypatch.setattr(REGISTRY.get("task", task).cls, "fingerprint", lambda self, request, seed: request)
    suite = load_suite(name)
    cells = expand(suite, device="cuda")
    asked = [task.partition(":")[0] for task in suite.tasks]
    assert [*dict.fromkeys(cell.task for cell in cells)] == asked
    assert {cell.pool for cell in cells} == {"test"} and len({cell.key for cell in cells}) == len(cells)


@pytest.fixture
def toys():
    with restored_registry() as registry:
        registry.load_plugin(str(TOY_TASK))
        yield registry


FACTS = {"name": "mixed", "methods": ["original"], "metrics": ["accuracy"]}


def test_one_task_without_data_does_not_hide_the_others(toys, monkeypatch):
    suite = Suite(**FACTS, tasks=["toy", "cifar10"])
    missing = {}
    cells = expand(suite, device="cpu", missing=missing)
    assert list(missing) == ["cifar10"] and {cell.task for cell in cells if not cell.key} == {"cifar10"}
    assert [cell for cell in cells if cell.key] == expand(Suite(**FACTS, tasks=["toy"]), device="cpu")
    with pytest.raises(MissingData, match="cifar10 misses data_batch_1"):
        expand(suite, device="cpu")


def test_a_task_in_two_crossings_is_told_once_and_a_wrong_name_is_no_missing_data(toys):
    missing = {}
    suite = Suite(**FACTS, tasks=["toy", "cifar10"], also=[{"base_seeds": [1]}])
    expand(suite, device="cpu", missing=missing)
    assert len(missing) == 1
    for wrong in ({"methods": ["orginal"]}, {"base_seeds": [7]}, {"requests": {"toy": ["nobody"]}}):
        with pytest.raises(UsageError) as refused:
            expand(suite.model_copy(update={"also": [], **wrong}), device="cpu", missing={})
        assert not isinstance(refused.value, MissingData)


@pytest.fixture
def on_the_network(toys, monkeypatch):
    """The toy task as if it needed what only a network has: what was fetched so far."""
    fetched = []

    def fingerprint(self, request, seed):
        if not fetched:
            raise NotFetched("weights of toy are not here; `slugbench run` fetches them.", lambda: fetched.append("weights"))
        return f"{request} {seed}"

    monkeypatch.setattr(toys.get("task", "toy").cls, "fingerprint", fingerprint)
    return fetched


TOY = 'name = "t"\ntasks = ["toy"]\nmethods = ["original"]\nmetrics = ["accuracy"]\nrequests = 1\n'


def test_a_plan_fetches_nothing_and_a_run_does(on_the_network, tmp_path, capsys):
    (tmp_path / "t.toml").write_text(TOY)
    assert main(["plan", "t.toml", "--device", "cpu"]) == 0 and not on_the_network
    out = capsys.readouterr().out
    assert "suite t: 1 cells on cpu, 0 done; 1 of 1 tasks lack something yet:" in out and "1 cells are of kinds never" in out
    assert "`slugbench run` fetches them." in out and "toy, single: 1 request" in out
    assert main(["run", "t.toml", "--device", "cpu", "--out", "out", "--plugin", str(TOY_TASK)]) == 0
    assert on_the_network == ["weights"]


def test_what_is_fetched_and_still_not_found_ends_a_run(toys, tmp_path, monkeypatch, capsys):
    def fingerprint(self, request, seed):
        raise NotFetched("weights of toy are not here.", lambda: None)

    monkeypatch.setattr(toys.get("task", "toy").cls, "fingerprint", fingerprint)
    (tmp_path / "t.toml").write_text(TOY)
    assert main(["run", "t.toml", "--device", "cpu", "--out", "out"]) == 2
    assert "weights of toy are not here." in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_of_a_task_without_data_stops_before_anything_is_written(tmp_path, capsys):
    assert main(["run", "cifar10-class", "--out", "out"]) == 2
    assert "cifar10 misses data_batch_1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shipped_suite_files_are_what_they_are_called():
    for name in [*reproductions(), "paper"]:
        assert tomllib.loads(suite_text(name))["name"] == name
