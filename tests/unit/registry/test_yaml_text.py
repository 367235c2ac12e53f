import pytest
from pydantic import JsonValue

from penstock.contracts.envelope import MAX_DEPTH
from penstock.contracts.errors import RejectedError
from penstock_registry.core.yaml_text import MAX_DOCUMENTS, MAX_NODES, YamlReader


def load_yaml(text: str, *, path: str = "") -> list[JsonValue]:
    return YamlReader().read(text, path=path)


def fault_of(text: str) -> str:
    with pytest.raises(RejectedError) as caught:
        load_yaml(text, path="documents[0]")
    (detail,) = caught.value.details
    assert detail.path == "documents[0]"
    return detail.message


def test_yaml_date_stays_text() -> None:
    assert load_yaml("since: 2026-11-20") == [{"since": "2026-11-20"}]


def test_yaml_with_a_key_twice_is_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        load_yaml("a: 1\nb: 2\na: 3", path="documents[0]")

    assert caught.value.details[0].message == "not YAML: 'a' is written twice (line 3, column 1)"


def test_yaml_keys_are_text_as_written() -> None:
    text = "yes: 1\nno: 2\ntrue: 3\nnull: 4\n7: 5\nmore: &more {off: 6}\nall: {<<: *more}"

    assert load_yaml(text) == [
        {"yes": 1, "no": 2, "true": 3, "null": 4, "7": 5, "more": {"off": 6}, "all": {"off": 6}}
    ]


def test_yaml_that_would_make_objects_is_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        load_yaml("!!python/object/apply:os.system ['true']")

    assert caught.value.code == "invalid_document"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("TRUE", True),
        ("False", False),
        ("1e3", 1000.0),
        ("1.e+3", 1000.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("0b1", "0b1"),
        ("1.2.3", "1.2.3"),
        ("2026-11-20", "2026-11-20"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("Null", None),
        ("~", None),
        ("", None),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!int 0o7", 7),
        ("!!float 1", 1.0),
        ('!!null ""', None),
        ("!!map {a: 1}", {"a": 1}),
        ("!!seq [-, 1]", ["-", 1]),
        ("'.nan'", ".nan"),
        (r'"\U0001F600"', "\U0001f600"),
    ],
)
def test_scalar_is_read_by_the_core_schema(text: str, value: JsonValue) -> None:
    (found,) = load_yaml(f"x: {text}\n")

    assert isinstance(found, dict)
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x: .nan", "'.nan' is beyond the range of numbers (line 1, column 4)"),
        ("x: [1, -.INF]", "'-.INF' is beyond the range of numbers (line 1, column 8)"),
        ("x:\n  y: 1e400", "'1e400' is beyond the range of numbers (line 2, column 6)"),
        ("x: !!float .inf", "'.inf' is beyond the range of numbers (line 1, column 4)"),
        ("x: " + "9" * 5000, f"'{'9' * 40}' is beyond the range of numbers (line 1, column 4)"),
        ('x: !!int "abc"', "'abc' is no !!int (line 1, column 4)"),
        ("x: !!bool yes", "'yes' is no !!bool (line 1, column 4)"),
        ("x: !!seq {}", "tag 'tag:yaml.org,2002:seq' is unknown here; allowed: !!map"),
        ("x: !!binary aGk=", "tag 'tag:yaml.org,2002:binary' is unknown here"),
        ("x: !secret y", "tag '!secret' is unknown here"),
        ("x: !!set {a}", "tag 'tag:yaml.org,2002:set' is unknown here"),
        ("x: {a: 1, a: 2}", "'a' is written twice (line 1, column 11)"),
        ("x: {1: 1, '1': 2}", "'1' is written twice (line 1, column 11)"),
        ("x: {<<: {}, <<: {}}", "'<<' is written twice (line 1, column 13)"),
        ("x: {<<: 1}", "'<<' takes a mapping or a sequence of mappings (line 1, column 5)"),
        ("? [a]\n: 1", "a key must be text (line 1, column 3)"),
        ("a: &a [*a]", "there is no complete anchor 'a' before (line 1, column 8)"),
        ("a: &a 1\n---\nb: *a", "there is no complete anchor 'a' before (line 3, column 4)"),
        (r'x: "\ud83d"', "invalid Unicode character escape code"),
        ("x: \ud83d", "character 4 is half a surrogate pair"),
        ("x: 1\ny: \u00e9\x00", "control characters are not allowed (line 2, column 5)"),
        ("x: [\n", "(line 2, column 1)"),
        ("x: 1\n\ty: 2", "(line 2, column 1)"),
    ],
)
def test_text_that_has_no_json_value_is_refused_with_its_place(text: str, problem: str) -> None:
    assert problem in fault_of(text)


def test_line_breaks_and_byte_order_mark_are_no_part_of_values() -> None:
    assert load_yaml("\ufeffa: |\r\n  x\r\n  y\r\nb: z\r\n") == [{"a": "x\ny\n", "b": "z"}]


def test_merge_takes_the_first_of_several_and_own_keys_before_all() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {'<<': 1}"

    (found,) = load_yaml(text)

    assert isinstance(found, dict)
    assert (found["c"], found["d"]) == ({"x": 1, "y": 1, "z": 3}, {"<<": 1})


def test_aliases_count_as_what_they_stand_for() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert fault_of(bomb).startswith(f"not YAML: more than {MAX_NODES} values, with aliases")

    long = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 200)}]"
    assert "more than" in fault_of(long)

    merges = "a: &a {" + ", ".join(f"k{n}" for n in range(1000)) + "}\n"
    assert "more than" in fault_of(merges + "".join(f"b{n}: {{<<: *a}}\n" for n in range(100)))


@pytest.mark.parametrize(
    ("nested", "fits"), [(MAX_DEPTH - 1, True), (MAX_DEPTH, False), (50_000, False)]
)
def test_depth_is_bounded(nested: int, fits: bool) -> None:
    text = "a: " + "[" * nested + "]" * nested
    if fits:
        assert len(load_yaml(text)) == 1
    else:
        assert f"nested more than {MAX_DEPTH} deep" in fault_of(text)


def test_depth_of_an_alias_counts() -> None:
    half = MAX_DEPTH // 2
    text = f"a: &a {'[' * half}{']' * half}\nb: {'[' * half}*a{']' * half}\n"

    assert "deep (line 2, column 54)" in fault_of(text)


def test_number_of_documents_is_bounded() -> None:
    assert f"more than {MAX_DOCUMENTS} documents" in fault_of("---\na: 1\n" * 50_000)
    assert f"more than {MAX_DOCUMENTS} documents" in fault_of("---\n" * 50_000)


def test_tag_directives_are_bounded() -> None:
    text = "".join(f"%TAG !e{n}! tag:example.com,2000:\n" for n in range(30_000))

    assert fault_of(text + "---\na: 1") == "not YAML: more than 16 %TAG lines"
