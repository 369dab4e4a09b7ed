"""`slugbench reproduce`, and a plan of which some tasks lack what they run on."""

import shlex
import tomllib

import pytest

from slugbench.bench import MissingData, UsageError
from slugbench.bench.cli import main, parser
from slugbench.bench.plan import Suite, expand, load_suite, reproductions, suite_text
from slugbench.bench.registry import REGISTRY, load

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
    assert set(reproductions()) == {"clip-celeba", "cifar10-random10", "cifar10-class", "imagenet-class"}
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
    assert lines[2] == "suite clip-celeba: 0 cells on cpu, 0 done, without 1 of 1 tasks, which cannot run yet:"
    assert "`slugbench doctor celeba` says what is needed" in lines[3]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  slugbench ")]
    assert [command[0] for command in commands] == ["doctor", "run"]
    for command in commands:
        parser().parse_args(command)


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
    assert out[0] == "suite paper: 0 cells on cpu, 0 done, without 5 of 5 tasks, which cannot run yet:"
    tasks = ["celeba", "imagenet", "cifar10", "cifar100", "imagenet_class"]
    assert [line.split(":")[0].strip() for line in out[1:]] == tasks


@pytest.mark.parametrize("name", ["paper", "clip-celeba", "cifar10-random10", "cifar10-class", "imagenet-class"])
def test_everything_a_suite_names_is_there_with_those_parameters(name, monkeypatch):
    """As it would be with the data: fingerprints stand in for what only data can say."""
    load()
    for task in ("celeba", "imagenet", "cifar10", "cifar100", "imagenet_class"):
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
    assert {cell.task for cell in cells} == {"toy"} and list(missing) == ["cifar10"]
    assert cells == expand(Suite(**FACTS, tasks=["toy"]), device="cpu")
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


def test_a_run_of_a_task_without_data_stops_before_anything_is_written(tmp_path, capsys):
    assert main(["run", "cifar10-class", "--out", "out"]) == 2
    assert "cifar10 misses data_batch_1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_shipped_suite_files_are_what_they_are_called():
    for name in [*reproductions(), "paper"]:
        assert tomllib.loads(suite_text(name))["name"] == name
