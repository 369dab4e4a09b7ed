"""How definitions are found, and how `name:key=value` becomes one of them."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slugbench.bench import UsageError, method, metric, report, task
from slugbench.bench.registry import Registry, Spec, load, parse_spec, parse_specs

from ..toys import FAILING, FAILURES, ROOT, TOY_TASK, run_python

PLUGIN = """
from dataclasses import dataclass
from slugbench.bench import method

STRENGTH = {strength}

@method("{name}")
@dataclass(frozen=True)
class Mine:
    '''A method.

    With more to say.
    '''
    steps: int = 3

    def __call__(self, request):
        return STRENGTH
"""


def write(path: Path, name="mine", strength=1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PLUGIN.format(name=name, strength=strength))
    return str(path)


@pytest.fixture
def typed(registry) -> Registry:
    """With a method that has a parameter of every type in use."""

    @method("typed")
    @dataclass(frozen=True)
    class Typed:
        rate: float = 0.5
        steps: int = 3
        nested: bool = True
        name: str = "adam"
        cap: float | None = None
        side: Literal["image", "text"] = "image"
        hidden: int = field(default=7, init=False)

        def __post_init__(self):
            if self.steps < 0:
                raise ValueError("steps is negative; give 0 or more")

        def __call__(self, request):
            return request.model

    return registry


# ---------------------------------------------------------------- decorators


def test_a_definition_is_registered_with_its_file_and_first_line(registry, tmp_path):
    registry.load_plugin(write(tmp_path / "mine.py"))
    entry = registry.get("method", "mine")
    assert (entry.kind, entry.name, entry.summary) == ("method", "mine", "A method.")
    assert (Path(entry.source), entry.parameters()) == (tmp_path / "mine.py", {"steps": 3})
    assert not entry.control and entry.sees == "request"


@pytest.mark.parametrize("name", ["Mine", "my-method", "my method", "", "_", "mé", "a:b"])
def test_a_name_that_cannot_be_typed_is_refused(registry, name):
    with pytest.raises(UsageError, match="lower-case letters, digits and underscores"):
        method(name)(type("Mine", (), {}))


@pytest.mark.parametrize("decorate", [method, metric, report, task])
def test_a_class_that_is_no_frozen_dataclass_is_refused(registry, decorate):
    @dataclass
    class Thawed:
        def __call__(self, request):
            return request.model

    with pytest.raises(UsageError, match=r"Thawed.* must be a frozen dataclass; put @dataclass\(frozen=True\) under @"):
        decorate("thawed")(Thawed)


@pytest.mark.parametrize(("decorate", "wanted"), [(method, "request"), (metric, "outcome"), (report, "frame, runs, out")])
def test_a_call_with_other_arguments_is_refused(registry, decorate, wanted):
    @dataclass(frozen=True)
    class Odd:
        def __call__(self, model, data):
            return model

    @dataclass(frozen=True)
    class Silent:
        pass

    for cls, had in ((Odd, r"\('model', 'data'\)"), (Silent, "no __call__")):
        with pytest.raises(UsageError, match=rf"needs __call__\(self, {wanted}\); it has {had}"):
            decorate("odd")(cls)


def test_a_call_may_be_inherited(registry):
    @dataclass(frozen=True)
    class Base:
        def __call__(self, request):
            return request.model

    @method("heir")
    @dataclass(frozen=True)
    class Heir(Base):
        steps: int = 1

    assert registry.create("method", "heir").steps == 1


def test_only_built_in_controls_may_see_the_trial(registry):
    @dataclass(frozen=True)
    class Peeks:
        def __call__(self, trial):
            return trial.oracle_model(0)

    with pytest.raises(UsageError, match="asks to see the trial; only built-in controls may"):
        method("peeks", sees="trial")(Peeks)


def test_a_definition_typed_into_a_prompt_is_registered_too():
    code = PLUGIN.format(name="mine", strength=1) + "\nfrom slugbench.bench.registry import REGISTRY\n"
    assert run_python(code + "print(REGISTRY.get('method', 'mine').source)") == "<unknown>\n"


# ---------------------------------------------------------------- two definitions of one name


def test_two_definitions_of_one_name_are_refused_and_both_files_named(registry, tmp_path):
    registry.load_plugin(write(tmp_path / "a" / "mine.py"))
    other = tmp_path / "b" / "mine.py"
    other.parent.mkdir()
    other.write_text(PLUGIN.format(name="mine", strength=1).replace("steps: int = 3", "steps: int = 4"))
    with pytest.raises(UsageError, match="two different methods are named 'mine'") as refused:
        registry.load_plugin(str(other))
    assert str(tmp_path / "a" / "mine.py") in str(refused.value) and str(other) in str(refused.value)


def test_a_copy_that_differs_outside_the_class_alone_is_another_definition(registry, tmp_path):
    registry.load_plugin(write(tmp_path / "a.py", strength=1))
    with pytest.raises(UsageError, match="two different methods"):
        registry.load_plugin(write(tmp_path / "b.py", strength=2))


def test_the_same_definition_imported_twice_is_accepted(registry, tmp_path):
    registry.load_plugin(write(tmp_path / "a.py"))
    first = registry.get("method", "mine").cls
    registry.load_plugin(write(tmp_path / "a.py"))
    registry.load_plugin(write(tmp_path / "copy.py"))
    assert registry.get("method", "mine").cls is first


def test_a_method_and_a_metric_may_share_a_name(registry, tmp_path):
    registry.load_plugin(write(tmp_path / "a.py"))

    @metric("mine")
    @dataclass(frozen=True)
    class Measures:
        def __call__(self, outcome):
            return []

    assert registry.get("metric", "mine").cls is Measures


# ---------------------------------------------------------------- specs

WORD = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
TEXT = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters=","), max_size=12
)  # as a shell word, no commas
SPEC = st.builds(Spec, WORD, st.dictionaries(WORD, TEXT, max_size=3))


def text_of(spec: Spec) -> str:
    params = ",".join(f"{key}={value}" for key, value in spec.params.items())
    return f"{spec.name}:{params}" if params else spec.name


@given(SPEC)
def test_a_spec_is_read_back_from_its_text(spec):
    assert parse_spec(text_of(spec)) == spec


@given(st.lists(SPEC, max_size=4))
def test_a_list_of_specs_is_read_back_from_its_text(specs):
    assert parse_specs(",".join(text_of(spec) for spec in specs)) == specs


def test_a_comma_before_key_continues_the_spec():
    assert parse_specs("slug, salun:keep=0.3,steps=20, ga,rate=1e-3") == [
        Spec("slug", {}),
        Spec("salun", {"keep": "0.3", "steps": "20"}),
        Spec("ga", {"rate": "1e-3"}),
    ]


def test_a_value_may_hold_colons_and_equal_signs():
    assert parse_specs("celeba:model=a,pretrained=s3://x/y=1") == [
        Spec("celeba", {"model": "a", "pretrained": "s3://x/y=1"})
    ]


@pytest.mark.parametrize("text", ["slug:keep", "slug:=3", "slug:keep=1,steps", "slug:keep=1,keep=2", ":keep=1", ""])
def test_a_malformed_spec_is_refused_in_a_sentence_that_quotes_it(text):
    with pytest.raises(UsageError, match=f"'{text}' is not of the form name:key=value,key=value; "):
        parse_spec(text)


# ---------------------------------------------------------------- making one


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("steps", "12", 12),
        ("nested", "false", False),
        ("nested", "True", True),
        ("name", "12", "12"),
        ("cap", "none", None),
        ("cap", "0.1", 0.1),
        ("side", "text", "text"),
        ("steps", 5, 5),
    ],
)
def test_text_is_read_by_the_fields_type(typed, key, text, value):
    got = getattr(typed.create("method", "typed", {key: text}), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"steps": "many"}, "method 'typed' cannot take steps=many: input should be a valid integer"),
        ({"steps": "1.5"}, "method 'typed' cannot take steps=1.5: input should be a valid integer"),
        ({"side": "both"}, "method 'typed' cannot take side=both: input should be 'image' or 'text'"),
        ({"rate": "none"}, "method 'typed' cannot take rate=none: input should be a valid number"),
        ({"rat": "1"}, "has no parameter 'rat' (did you mean 'rate'?); it has rate, steps, nested, name, cap, side."),
        ({"hidden": "1"}, "method 'typed' has no parameter 'hidden'"),
        ({"steps": "-1"}, "method 'typed' refuses steps=-1: steps is negative; give 0 or more"),
    ],
)
def test_a_bad_parameter_is_refused_in_one_sentence(typed, params, message):
    with pytest.raises(UsageError) as refused:
        typed.create("method", "typed", params)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_an_unknown_name_gets_the_nearest_and_all(typed):
    with pytest.raises(UsageError, match=r"there is no method 'typd' \(did you mean 'typed'\?\); there is .*typed"):
        typed.get("method", "typd")
    with pytest.raises(UsageError, match=r"there is no task 'toy'; there is none\.") as refused:
        Registry().get("task", "toy")
    assert refused.value.exit_code == 2


# ---------------------------------------------------------------- plug-ins


def test_plug_ins_of_the_tests_load(registry):
    registry.load_plugin(str(TOY_TASK))
    registry.load_plugin(str(FAILING))
    assert "toy" in registry.names("task") and {*FAILURES, "noop"} <= set(registry.names("method"))


def test_a_plug_in_file_is_imported_under_its_digest_with_its_folder_on_the_path(registry, tmp_path):
    (tmp_path / "mines_helper.py").write_text("STEPS = 11\n")
    (tmp_path / "mine.py").write_text("from mines_helper import STEPS\n" + PLUGIN.format(name="mine", strength="STEPS"))
    registry.load_plugin(str(tmp_path / "mine.py"))
    cls = registry.get("method", "mine").cls
    assert cls.__module__.startswith("slugbench_plugin_") and sys.modules[cls.__module__].STEPS == 11
    assert "mine" not in sys.modules
    del sys.modules["mines_helper"]


def test_two_plug_in_files_of_one_name_do_not_collide(registry, tmp_path):
    for name in ("one", "two"):
        registry.load_plugin(write(tmp_path / name / "method.py", name))
    modules = {registry.get("method", name).cls.__module__ for name in ("one", "two")}
    assert len(modules) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nif True print()\n", r"does not load: SyntaxError: .*line 2"),
        ("1 / 0\n", r"does not load: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", r"does not load: SystemExit: 3"),
        ("import no_such_package\n", r"does not load: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_plug_in_file_that_does_not_load_is_named_with_the_reason(registry, tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = {name for name in sys.modules if name.startswith("slugbench_plugin_")}
    with pytest.raises(UsageError, match=message) as refused:
        registry.load_plugin(str(path))
    assert str(path) in str(refused.value) and str(refused.value).count("line 2") <= 1
    assert {name for name in sys.modules if name.startswith("slugbench_plugin_")} == before


def test_a_plug_ins_own_refusal_reaches_the_user_unwrapped(registry, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="Mine!", strength=1))
    with pytest.raises(UsageError, match=r"^'Mine!' is no method name"):
        registry.load_plugin(str(path))


@pytest.mark.parametrize("where", ["missing.py", "some/folder", "no_such_module", "json.no_such", "."])
def test_a_plug_in_that_is_not_there_is_named(registry, where):
    with pytest.raises(UsageError, match=rf"plug-in (file )?{where} does not"):
        registry.load_plugin(where)


def test_a_plug_in_may_be_a_module_name(registry, tmp_path, monkeypatch):
    write(tmp_path / "foreign_package" / "forget.py", "foreign")
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugin("foreign_package.forget")
    assert registry.get("method", "foreign").cls.__module__ == "foreign_package.forget"


# ---------------------------------------------------------------- installed packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a made-up distribution with an entry point on the path."""

    def install(module: str, text: str, distribution="slugbench-extra") -> None:
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[slugbench]\nextra = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_an_installed_package_names_its_module_under_the_entry_point_group(registry, installed):
    installed("slugbench_extra_good", PLUGIN.format(name="extra", strength=1))
    registry.load_entry_points()
    assert registry.create("method", "extra", {"steps": "5"}).steps == 5


@pytest.mark.parametrize("text", ["1 / 0\n", "import sys\nsys.exit()\n", "def f(:\n"])
def test_an_installed_package_that_does_not_load_is_remembered_and_stops_nothing(registry, installed, text):
    module = f"slugbench_extra_bad{abs(hash(text))}"
    installed(module, text, "slugbench-bad")
    installed(module + "_good", PLUGIN.format(name="extra", strength=1))
    known = len(registry.broken)
    registry.load_entry_points()
    assert "extra" in registry.names("method")
    (broken,) = registry.broken[known:]
    assert broken.source == module and broken.error.split(":")[0] in {"ZeroDivisionError", "SystemExit", "SyntaxError"}


def test_our_own_folders_load_without_a_fault():
    assert load().broken == []
    assert all(ROOT in Path(entry.source).resolve().parents for entry in load().entries.values())


def test_a_second_load_adds_nothing_and_a_plug_in_can_follow(registry):
    before = dict(load().entries)
    assert load().entries == before
    assert set(load([str(FAILING)]).entries) - set(before) == {("method", name) for name in (*FAILURES, "noop")}


def test_a_plug_in_loads_first_in_a_fresh_process():
    """A plug-in imported before anything else must not keep our own folders from loading."""
    code = f"""
from slugbench.bench.registry import REGISTRY, load
REGISTRY.load_plugin({str(FAILING)!r})
print(len(load().entries))
"""
    assert int(run_python(code)) == len(load().entries) + len(FAILURES) + 1
