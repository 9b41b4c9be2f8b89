"""Files of options in YAML: small, flat, and read as they are written."""

from pathlib import Path
from typing import Any

import yaml

from fastsnn.errors import RunFolderError
from fastsnn.files import check_regular

MOST_BYTES = 1 << 16
"""A run's config.yaml has about 1,000."""


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which may stand for gigabytes, and without options that are given twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: write the value out, aliases are not followed")
        self.depth += 1
        if self.depth > 10:
            raise yaml.MarkedYAMLError(problem="it is nested more than 10 deep; options are lines such as `epochs: 20`")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"{twice} is given twice: keep one of them")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file; a run's own ``environment`` block is left out.

    Raises RunFolderError, naming the file, if it is no regular file, too large, or holds anything else.
    """
    try:
        check_regular(path, MOST_BYTES)
        values = yaml.load(path.read_text(encoding="utf-8").removeprefix("\ufeff"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnicodeDecodeError):
            reason = f"it is no UTF-8 text, by byte {error.start}"
        raise RunFolderError(f"{path} can't be read as YAML: {reason[:300]}") from error
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} holds no options; expected lines such as `epochs: 20`")
    values.pop("environment", None)
    return values
