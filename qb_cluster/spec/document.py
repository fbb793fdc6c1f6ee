"""A YAML 1.2 file read with care: plain data, and where each piece of it stands."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.docinfo import version
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from qb_cluster.errors import SpecError

LARGEST_FILE: Final = 2**20  # bytes
DEEPEST: Final = 40  # lists and mappings inside one another, aliases expanded
MOST_VALUES: Final = 200_000  # aliases expanded: a few lines of them can stand for billions
MOST_PROBLEMS: Final = 10  # what fits one screen
LONGEST_MESSAGE: Final = 400  # characters

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null"))
_PLAIN_WORDS = {
    "expected a single document in the stream": "a spec is one YAML document; remove this '---'",
    "found unexpected end of stream": "a quoted text is never closed",
}

Location = tuple[str | int, ...]
"""Keys and list indices that lead from the top of a document to one value."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong at a place; lines and columns count from 1."""

    line: int
    column: int
    message: str


def spec_error(source: Path, problems: Iterable[Problem]) -> SpecError:
    """Put problems into one error: one a line, in file order, no more than fit a screen."""
    ordered = sorted(set(problems))
    lines = [
        f"{source}:{p.line}:{p.column}: {_on_one_line(p.message)}" for p in ordered[:MOST_PROBLEMS]
    ]
    if len(ordered) > MOST_PROBLEMS:
        lines.append(f"… and {len(ordered) - MOST_PROBLEMS} more")
    return SpecError("\n".join(lines))


def _on_one_line(message: str) -> str:
    """Make a message fit for a terminal, whatever the file it quotes holds."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
        source: the file, as the user named it.
        text: its content.
        data: its content as JSON values; the top is a mapping.
        root: the same as YAML nodes, which know where they stand.
    """

    source: Path
    text: str
    data: dict[str, Any]
    root: MappingNode

    def existing(self, path: Location) -> Location:
        """Drop from a path what the document does not have, such as pydantic's union tags."""
        return tuple(part for part, _, _ in self._walk(path))

    def problem(self, path: Location, message: str, *, at_key: bool = False) -> Problem:
        """Place a message at the value that a path leads to, or at its key."""
        mark = self.root.start_mark
        for _, key, value in self._walk(path):
            empty = isinstance(value, ScalarNode) and not value.value and value.style is None
            mark = key.start_mark if key is not None and (at_key or empty) else value.start_mark
        return Problem(mark.line + 1, mark.column + 1, message)

    def error(self, path: Location, message: str) -> SpecError:
        """Make an error of a single problem."""
        return spec_error(self.source, [self.problem(path, message)])

    def _walk(self, path: Location) -> Iterator[tuple[str | int, Node | None, Node]]:
        node: Node = self.root
        for part in path:
            if isinstance(node, MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == part), None)
                if pair is not None:
                    node = pair[1]
                    yield part, pair[0], node
            elif isinstance(node, SequenceNode) and isinstance(part, int):
                node = node.value[part]
                yield part, None, node


def read(source: Path) -> Document:
    """Read and parse a file.

    Raises:
        SpecError: it cannot be read, is no UTF-8, is larger than 1 MiB, or is no YAML 1.2
            mapping of JSON values.
    """

    def refusal(message: str, line: int = 1, column: int = 1) -> SpecError:
        return spec_error(source, [Problem(line, column, message)])

    try:
        with source.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        size = max(source.stat().st_size, len(content)) / 2**20
        raise refusal(f"the file has {size:.1f} MiB; a spec has at most 1 MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(errors="replace")
        line, column = _place(before, len(before))
        raise refusal("the file is not UTF-8 text", line, column) from error
    return parse(text, source)


def parse(text: str, source: Path) -> Document:
    """Parse the text of a file.

    Raises:
        SpecError: as ``read``.
    """
    if "\0" in text:
        raise spec_error(
            source,
            [Problem(*_place(text, text.index("\0")), "the file holds a NUL byte: it is no text")],
        )
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    yaml.composer.warn_double_anchors = False  # YAML 1.2 allows them
    try:
        root = yaml.compose(text)
    except YAMLError as error:
        raise spec_error(source, [_syntax_problem(text, error)]) from error
    declared = yaml.doc_infos[-1].doc_version
    if declared is not None and declared != version("1.2"):
        raise spec_error(source, [Problem(1, 1, "a spec is YAML 1.2; remove the %YAML line")])
    if root is None:
        raise spec_error(source, [Problem(1, 1, "the file is empty; 'sweep:' is where to start")])
    if not isinstance(root, MappingNode):
        message = "a spec is a mapping ('sweep: …', 'models: …'), not a list or a lone value"
        raise spec_error(source, [_at(root, message)])
    reader = _Reader(yaml.constructor, source)
    data = reader.value(root)
    if reader.problems:
        raise spec_error(source, reader.problems)
    return Document(source, text, data, root)


class _Reader:
    """Turns YAML nodes into JSON values and notes what cannot be one."""

    def __init__(self, constructor: SafeConstructor, source: Path) -> None:
        self.problems: list[Problem] = []
        self._constructor = constructor
        self._source = source
        self._values = 0

    def value(self, node: Node, depth: int = 1) -> Any:
        self._values += 1
        if depth > DEEPEST or self._values > MOST_VALUES:
            message = (
                f"aliases expanded, this is more than {DEEPEST} levels deep"
                if depth > DEEPEST
                else f"aliases expanded, the file has more than {MOST_VALUES:,} values"
            )
            raise spec_error(self._source, [_at(node, message)])
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, depth)
        if isinstance(node, ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node)
        if node.tag == _TAG + "timestamp":
            return self._refuse(node, f"put the date in quotes: '{node.value}'")
        return self._refuse(node, f"a spec knows no YAML tags such as {node.tag}")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                self._refuse(key_node, "YAML 1.2 has no merge key '<<'; write the keys out")
                continue
            key = self.value(key_node, depth + 1)
            if not isinstance(key, str):
                self._refuse(key_node, "a key is text; put it in quotes")
            elif key in result:
                self._refuse(key_node, f"'{key}' is given twice")
            else:
                result[key] = self.value(value_node, depth + 1)
        return result

    def _scalar(self, node: ScalarNode) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except ValueError:
            return self._refuse(node, f"'{node.value[:40]}' does not fit its tag {node.tag}")
        if isinstance(value, float) and not math.isfinite(value):
            return self._refuse(node, f"'{node.value[:40]}' is no finite number")
        return self._text(node, value) if isinstance(value, str) else value

    def _text(self, node: ScalarNode, value: str) -> str | None:
        """Join surrogate pairs, which is how JSON may write what lies beyond U+FFFF."""
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(node, "half of a surrogate pair is no text")
            return None

    def _refuse(self, node: Node, message: str) -> None:
        self.problems.append(_at(node, message))


def _at(node: Node, message: str) -> Problem:
    return Problem(node.start_mark.line + 1, node.start_mark.column + 1, message)


def _place(text: str, index: int) -> tuple[int, int]:
    """Give line and column, from 1, of an index into a text."""
    return text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1


def _syntax_problem(text: str, error: YAMLError) -> Problem:
    if isinstance(error, ReaderError):
        line, column = _place(text, error.position)
        return Problem(line, column, f"the character U+{error.character:04X} may not stand in YAML")
    assert isinstance(error, MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    line_text = lines[mark.line] if mark.line < len(lines) else ""
    indentation = line_text[: len(line_text) - len(line_text.lstrip())]
    if "\t" in indentation:
        column = indentation.index("\t") + 1
        message = "YAML does not allow a tab for indentation; use spaces"
        return Problem(mark.line + 1, column, message)
    words = _PLAIN_WORDS.get(error.problem or "") or _PLAIN_WORDS.get(error.context or "")
    if words is None:
        context = f" {error.context}" if error.context else ""
        words = f"this is not YAML: {error.problem}{context}"
    return Problem(mark.line + 1, mark.column + 1, words)
