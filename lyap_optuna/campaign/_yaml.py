"""YAML files of others: read in bounded time and memory, every error with its line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
"""PyYAML reads so much in half a second; a campaign file has a few hundred bytes."""

_MAX_DEPTH = 20
_MAX_VALUES = 10_000  # with every alias written out
_MAX_NUMBER = 2**63  # what databases, clocks and operating systems count up to


class YAMLFileError(ValueError):
    """A file that cannot be read; the message names file and line."""


def read_yaml(path: Path) -> tuple[Any, yaml.Node]:
    """Return the content of a YAML document, and its nodes, which know their lines.

    Only plain data is constructed. Numbers are finite and have 64 bits at most, keys are text
    and stand once, text can be written as UTF-8 and holds no NUL, which neither databases nor
    operating systems take.

    Raises:
        YAMLFileError: It cannot be read, or is not such a document.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise YAMLFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YAMLFileError(f"{path}, line {line}: it is not UTF-8 text.") from None
    if len(content) > MAX_BYTES:
        line = text.count("\n") + 1
        raise YAMLFileError(f"{path}, line {line}: the file is larger than {MAX_BYTES} bytes.")
    try:
        _check_depth(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, yaml.ScalarNode("tag:yaml.org,2002:null", "")
        _count(node, {})
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YAMLFileError(
            f"{path}, line {mark.line + 1 if mark else 1}: {error.problem}."
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YAMLFileError(f"{path}, line {line}: {error.reason}.") from None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _problem(node, str(error)) from None
        if isinstance(value, (int, float)) and not abs(value) < _MAX_NUMBER:
            raise _problem(node, "a number must be finite and have at most 64 bits")
        return value


def _problem(node: Any, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def _check_depth(text: str) -> None:
    # On events: everything that comes later in PyYAML goes from node to node by recursion.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _problem(event, f"more than {_MAX_DEPTH} levels deep")


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a node holds, with aliases written out; each is looked at once."""
    known = counts.get(id(node), -1)
    if known == 0:
        raise _problem(node, "a value that contains itself")
    if known > 0:
        return known
    counts[id(node)] = 0
    total = 1 + sum(_count(child, counts) for child in _children(node))
    if total > _MAX_VALUES:
        raise _problem(node, f"more than {_MAX_VALUES} values, with aliases written out")
    counts[id(node)] = total
    return total


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the nodes within a node, checked."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _problem(key, "a key must be text")
            if key.value in seen:
                raise _problem(key, f"{key.value}: given twice")
            seen.add(key.value)
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    else:
        if "\0" in node.value:
            raise _problem(node, "text must not hold the character NUL")
        try:
            node.value.encode()
        except UnicodeEncodeError:
            raise _problem(node, "text must be valid Unicode") from None
