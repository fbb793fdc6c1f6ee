from pathlib import Path

import pytest

from qb_cluster.errors import SpecError
from qb_cluster.spec import load_spec


def error_of(path):
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def test_a_missing_file_is_named(tmp_path):
    assert error_of(tmp_path / "no.yaml") == "1:1: cannot be read: No such file or directory"


def test_a_folder_is_no_spec(tmp_path):
    assert error_of(tmp_path) == "1:1: cannot be read: Is a directory"


def test_a_file_of_ten_megabytes_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("# " + "x" * 10 * 2**20)
    assert error_of(path) == "1:1: the file has 10.0 MiB; a spec has at most 1 MiB"


def test_an_endless_file_is_refused_too():
    assert "a spec has at most 1 MiB" in error_of(Path("/dev/zero"))


def test_a_file_of_just_one_mebibyte_is_read(tmp_path, spec_text, load):
    load(spec_text + "#" * (2**20 - len(spec_text)))


def test_bytes_that_are_no_utf8_are_placed(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("sweep: x\nmodels: [né]\n".encode("latin-1"))
    assert error_of(path) == "2:11: the file is not UTF-8 text"


def test_a_byte_order_mark_is_no_content(load, spec_text):
    assert load("\ufeff" + spec_text).sweep == "trial"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: x\0y\n", "1:9: the file holds a NUL byte: it is no text"),
        ("sweep: x\n# \x07\n", "2:3: the character U+0007 may not stand in YAML"),
        ("", "1:1: the file is empty; 'sweep:' is where to start"),
        ("# only a comment\n", "1:1: the file is empty; 'sweep:' is where to start"),
        ("- a\n", "1:1: a spec is a mapping ('sweep: …', 'models: …'), not a list or a lone value"),
        ("a: 1\n---\nb: 2\n", "2:1: a spec is one YAML document; remove this '---'"),
        ("%YAML 1.1\n---\na: yes\n", "1:1: a spec is YAML 1.2; remove the %YAML line"),
        ("a:\n\tb: 1\n", "2:1: YAML does not allow a tab for indentation; use spaces"),
        ("a:\n  b:\n  \t- 1\n", "3:3: YAML does not allow a tab for indentation; use spaces"),
        ("a: 'x\n", "2:1: a quoted text is never closed"),
        ("a: [1, 2\nb: 3\n", "2:2: this is not YAML: expected ',' or ']', but got ':'"),
        ("a: *b\n", "1:4: this is not YAML: found undefined alias 'b'"),
        ("a: 1\nb: 2\na: 3\n", "3:1: 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "1:11: 'b' is given twice"),
        ("1: a\n", "1:1: a key is text; put it in quotes"),
        ("[1, 2]: a\n", "1:1: a key is text; put it in quotes"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "2:5: YAML 1.2 has no merge key '<<'; write the keys out"),
        ("a: 2026-01-31\n", "1:4: put the date in quotes: '2026-01-31'"),
        ("a: [1, .nan]\n", "1:8: '.nan' is no finite number"),
        ("a: 1e999\n", "1:4: '1e999' is no finite number"),
        ("a: !!python/object:os.system x\n", "1:4: a spec knows no YAML tags such as"),
        ("a: !!int x\n", "1:4: 'x' does not fit its tag"),
        ('a: "\\ud800"\n', "1:4: half of a surrogate pair is no text"),
        ("a: " + "9" * 5_000 + "\n", "1:4: '9999"),
    ],
)
def test_what_is_no_plain_yaml_is_told_with_its_place(refusal, text, message):
    (line,) = refusal(text)
    assert line.startswith(message)
    assert len(line) < 200


def test_yes_and_no_are_words_as_in_yaml_1_2(load, spec_text):
    options = "{name: 'stub_plugins:small', options: {a: yes, b: 010, c: true}}"
    (model,) = load(spec_text.replace("stub_plugins:small, stub_plugins:large", options)).grid.model
    assert model.options == {"a": "yes", "b": 10, "c": True}


def test_anchors_work(load, spec_text):
    text = spec_text.replace("[w8, w4, w2, w8a8]", "&all [w8, w8a8]") + (
        "include: [{model: 'stub_plugins:third', bits: *all}]\n"
    )
    assert load(text).includes[0].bits == load(text).grid.bits


def test_an_alias_bomb_ends_in_a_message(refusal):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (line,) = refusal("\n".join(lines))
    assert "aliases expanded, the file has more than 200,000 values" in line


def test_an_alias_inside_itself_ends_in_a_message(refusal):
    (line,) = refusal("a: &a [*a]\n")
    assert "more than 40 levels deep" in line


def test_a_deep_nest_ends_in_a_message(refusal):
    (line,) = refusal("a: " + "[" * 5_000)
    assert "maximum depth" in line
