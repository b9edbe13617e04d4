"""Owns the proof that every value of a TOML file is found at the line where it stands."""

import tomllib

import pytest

from services.pricing.shipped import FOLDER
from services.pricing.toml_lines import line_at, lines_of

TRICKY = r"""# a comment with [brackets] and "quotes"
title = "a # no comment" # one
"quoted key" = 'lit # eral'
dotted.inner . deep = 1
text = QQQ
[[models]]
a = 1 \QQQ still "" text
QQQ""
raw = '''
[table]
'''

[[models]]
name = "first"
rates = [ # list
  { component = "input", usd = "5" },
  # between
  { component = "output", usd = "]" }, [1,
    2],
]
[models.limits]
most = 5
[[models.notes]]
text = "one"
[[models.notes]]
text = "two"

[[models]]
name = "second"
inline = { a = { b = [ { c = 1979-05-27T07:32:00Z }, { c = +1.5e3 } ] }, d = QQQx
yQQQ }
last = inf
""".replace("QQQ", '"""')

WHERE = {
    "title": "title =",
    "quoted key": '"quoted key" =',
    "dotted": "dotted.inner",
    "dotted.inner.deep": "dotted.inner",
    "text": 'text = """',
    "raw": "raw =",
    "models[0]": "[[models]]",
    "models[0].name": 'name = "first"',
    "models[0].rates": "rates = [",
    "models[0].rates[0]": '{ component = "input"',
    "models[0].rates[0].usd": '{ component = "input"',
    "models[0].rates[1].usd": '{ component = "output"',
    "models[0].rates[2][0]": '{ component = "output"',
    "models[0].rates[2][1]": "2],",
    "models[0].limits": "[models.limits]",
    "models[0].limits.most": "most = 5",
    "models[0].notes[1].text": 'text = "two"',
    "models[1].name": 'name = "second"',
    "models[1].inline.a.b[1].c": "inline = {",
    "models[1].inline.d": "inline = {",
    "models[1].last": "last = inf",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_value_is_found_where_it_stands(newline):
    text = TRICKY.replace("\n", newline)
    tomllib.loads(text)
    lines, found = TRICKY.split("\n"), lines_of(text)
    for path, begins in WHERE.items():
        line = lines[found[path] - 1]
        assert line.strip().startswith(begins), (path, found[path], line)
    assert found["models[0]"] < found["models[1]"]


def paths(value, path=""):
    """The path of every value of a document."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths(inner, f"{path}[{number}]")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.name)
def test_every_value_of_the_shipped_files_has_a_line(file):
    text = file.read_text()
    found, lines = lines_of(text), text.splitlines()
    every = list(paths(tomllib.loads(text)))
    assert set(every) <= set(found)
    for path in every:
        name = path.rsplit(".", 1)[-1].partition("[")[0]
        inside_a_list = path.endswith("]")
        assert name in lines[found[path] - 1] or inside_a_list


def test_what_is_missing_is_told_at_what_it_would_stand_in():
    found = lines_of('a = 1\n[[models]]\nname = "x"\nrates = [\n  { usd = "1" },\n]\n')
    assert line_at(found, "models[0].rates[0].component") == 5
    assert line_at(found, "models[0].provider") == 2
    assert line_at(found, "models[0].rates[7].usd") == 4
    assert line_at(found, "currency") is None
    assert line_at(found, "") is None
