"""The three sources of settings, and what is said of each that is wrong."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.native import build
from common.settings.printing import to_yaml
from common.settings.settings import Parser, read, setting, settings_of
from common.settings.sources import Loaded, add_config_arguments, from_sources, load
from common.settings.values import SettingError
from decoder_service.config import DecoderConfig
from diptych import connection
from diptych.up_config import UpConfig
from vision_service.config import VisionConfig


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """The inner part."""

    depth: int = setting(2, help="how deep", minimum=1, maximum=9)
    colour: Colour = setting(Colour.RED, help="how it looks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """A thing."""

    inner: Inner
    model: Path = setting(help="where it lies")
    loud: bool = setting(False, help="speak up")
    share: float = setting(0.5, help="part", minimum=0, maximum=1)
    limit: int | None = setting(None, help="how many", minimum=1)
    names: tuple[str, ...] = setting((), help="who")
    title: str = setting("", help="what it is called")


def loaded(
    *flags: str, environment: Mapping[str, str] | None = None, file: str | None = None, folder: Path | None = None
) -> Loaded[Outer]:
    parser = Parser(prog="thing")
    add_config_arguments(parser, Outer)
    if file is not None and folder is not None:
        (folder / "thing.yaml").write_text(file)
        flags = ("--config", str(folder / "thing.yaml"), *flags)
    return load(Outer, parser.parse_args(flags), environment=environment or {})


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_environment", [True, False])
@pytest.mark.parametrize("in_flags", [True, False])
def test_flags_go_before_the_environment_before_the_file_before_defaults(
    tmp_path: Path, in_file: bool, in_environment: bool, in_flags: bool
) -> None:
    found = loaded(
        *(("--depth", "5") if in_flags else ()),
        environment={"DIPTYCH_MODEL": "m", **({"DIPTYCH_DEPTH": "4"} if in_environment else {})},
        file="inner: {depth: 3}" if in_file else "",
        folder=tmp_path,
    )
    values = {
        "--depth": (in_flags, 5),
        "DIPTYCH_DEPTH": (in_environment, 4),
        str(tmp_path / "thing.yaml"): (in_file, 3),
    }
    origin, depth = next(((name, value) for name, (there, value) in values.items() if there), ("default", 2))
    assert found.config.inner.depth == depth
    assert found.origins.get("depth", "default") == origin


def test_a_file_gives_every_type(tmp_path: Path) -> None:
    text = """
    model: /m            # a remark
    loud: true
    share: 1
    limit: null
    names: [a, "b,c"]
    inner:
      depth: 3
      colour: blue
    """
    config = loaded(file=text, folder=tmp_path).config
    assert config == Outer(
        inner=Inner(depth=3, colour=Colour.BLUE), model=Path("/m"), loud=True, share=1.0, names=("a", "b,c")
    )


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environment = {"DIPTYCH_TOKEN": "t", build.CACHE_VARIABLE: "/kernels", connection.TOKEN_VARIABLE: "t"}
    assert not loaded("--model", "m", environment=environment).config.loud


def test_a_variable_names_the_file() -> None:
    with pytest.raises(SettingError, match=r"nowhere\.yaml: No such file"):
        loaded(environment={"DIPTYCH_CONFIG": "nowhere.yaml"})


def test_variables_of_commands_and_kernels_are_no_settings() -> None:
    environment = {"DIPTYCH_TOKEN": "a", "DIPTYCH_NATIVE_CACHE": "/kernels"}
    assert loaded("--model", "m", "--depth", "3", environment=environment).origins.keys() == {"model", "depth"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DIPTYCH_DEPHT": "3"}, "DIPTYCH_DEPHT is no setting of this command; did you mean DIPTYCH_DEPTH?"),
        ({"DIPTYCH_depth": "3"}, "DIPTYCH_depth is no setting of this command; did you mean DIPTYCH_DEPTH?"),
        ({"DIPTYCH_DEPTH": "10"}, "DIPTYCH_DEPTH must be a whole number from 1 to 9, got 10"),
        ({"DIPTYCH_DEPTH": "9" * 400}, f"DIPTYCH_DEPTH must be a whole number from 1 to 9, got {'9' * 400}"),
        ({"DIPTYCH_DEPTH": ""}, "DIPTYCH_DEPTH must be a whole number from 1 to 9, got ''"),
        ({"DIPTYCH_LOUD": "aye"}, "DIPTYCH_LOUD must be true or false, got 'aye'"),
        ({"DIPTYCH_COLOUR": "green"}, "DIPTYCH_COLOUR must be one of red, blue, got 'green'"),
    ],
)
def test_a_wrong_variable_is_named(environment: Mapping[str, str], words: str) -> None:
    with pytest.raises(SettingError) as raised:
        loaded("--model", "m", environment=environment)
    assert str(raised.value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner: {depht: 3}", "inner.depht is no setting; did you mean depth?"),
        ("iner: {depth: 3}", "'iner' is no section or setting; did you mean inner?"),
        ("depth: 3", "depth belongs in the section inner"),
        ("inner: {loud: true}", "loud belongs outside of all sections, not in inner"),
        ("inner: 3", "inner is a section; its settings stand below it"),
        ("inner: {depth: 10}", "inner.depth must be a whole number from 1 to 9, got 10"),
        ("inner: {depth: 2.0}", "inner.depth must be a whole number from 1 to 9, got 2.0"),
        ("inner: {depth: true}", "inner.depth must be a whole number from 1 to 9, got True"),
        ("inner: {depth: null}", "inner.depth must be a whole number from 1 to 9, got None"),
        ("inner: {depth: [1]}", "inner.depth must be a whole number from 1 to 9, got [1]"),
        ("inner: {depth: {a: 1}}", "inner.depth must be a single value or a list"),
        ("share: .nan", "share must be a number from 0 to 1, got nan"),
        ("loud: 2", "loud must be true or false, got 2"),
        ("names: no", "names must be texts, got False"),
        ("share: 1\nshare: 0\n", "2: share stands there twice"),
        ("inner: {depth: 1, depth: 2}", "1: depth stands there twice"),
        ("- a", "must be a mapping of sections"),
        ("inner: [", "1: not YAML"),
        ("model: !!python/object/apply:os.system [true]", "not YAML"),
        ("1: 2", "1 is no section or setting"),
        (f"inner: {{depth: 1{'0' * 400}}}", "inner.depth must be a whole number from 1 to 9, got 1000"),
        ("inner: &inner {depth: *inner}", "is nested too deeply"),
        ("[" * 5000, "is nested too deeply"),
        ("names: [a, null]", "names must be texts, got ['a', None]"),
        ("names: [{a: 1}]", "names must be texts, got [{'a': 1}]"),
        ("names: [1.10]", "names must be texts, got [1.1]"),
        ("title: 1.10", "title must be a text"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingError) as raised:
        loaded("--model", "m", file=text, folder=tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "thing.yaml"))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_printed_says_where_each_value_comes_from(tmp_path: Path) -> None:
    found = loaded("--depth", "5", environment={"DIPTYCH_LOUD": "yes"}, file="model: x", folder=tmp_path)
    lines = {line.partition(":")[0].strip(): line.partition("#")[2].strip() for line in to_yaml(found).splitlines()}
    assert lines == {
        "model": str(tmp_path / "thing.yaml"), "loud": "DIPTYCH_LOUD", "share": "default", "limit": "default",
        "names": "default", "title": "default", "inner": "", "depth": "--depth", "colour": "default",
    }  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=TEXT.filter(lambda text: "\0" not in text),
    loud=st.booleans(),
    share=st.floats(0, 1),
    limit=st.none() | st.integers(1, 10**9),
    names=st.lists(TEXT.map(str.strip).filter(bool)),
    colour=st.sampled_from(["red", "blue"]),
)
def test_what_is_printed_is_read_as_the_same(tmp_path_factory: pytest.TempPathFactory, **values: object) -> None:
    config = read(Outer, values)  # type: ignore[arg-type]
    text = to_yaml(Loaded(config=config, origins={}))
    folder = tmp_path_factory.mktemp("printed")
    assert loaded(file=text, folder=folder).config == config


def test_a_wrong_setting_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = Parser(prog="thing")
    add_config_arguments(parser, Outer)
    monkeypatch.setenv("DIPTYCH_NOTHING", "1")
    with pytest.raises(SystemExit) as raised:
        from_sources(Outer, parser.parse_args(["--model", "m"]))
    assert raised.value.code == 2
    assert capsys.readouterr() == ("", "thing: DIPTYCH_NOTHING is no setting of this command\n")
    with pytest.raises(SystemExit):
        from_sources(Outer, parser.parse_args(["--model", "m"]), advice="others go elsewhere")
    assert capsys.readouterr() == ("", "thing: DIPTYCH_NOTHING is no setting of this command; others go elsewhere\n")


@pytest.mark.parametrize("config_class", [VisionConfig, DecoderConfig, UpConfig])
def test_settings_of_a_command_have_different_names_and_sections_clash_with_none(config_class: type) -> None:
    schema = list(settings_of(config_class))
    names = [each.name for each in schema]
    assert len(set(names)) == len(names)
    top = {each.name for each in schema if not each.section}
    assert not top & {each.section for each in schema}


@pytest.mark.parametrize("config_class", [VisionConfig, DecoderConfig])
def test_help_is_grouped_by_section(config_class: type, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="thing")
    add_config_arguments(parser, config_class)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[0] == "options"
    sections = dict.fromkeys(each.section.replace("_", " ") or "settings" for each in settings_of(config_class))
    assert headings[1:] == list(sections)


def test_a_printed_file_is_yaml_for_others_too() -> None:
    found = loaded("--model", "m", environment=dict(os.environ) and {})
    content = yaml.safe_load(to_yaml(found))
    assert content["inner"] == {"depth": 2, "colour": "red"}
    assert content["names"] == []
