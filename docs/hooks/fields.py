"""Shows a pydantic field as its default and its description, as the dashboard's form does."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, ExprCall, ExprKeyword, Extension


class Fields(Extension):
    """Reads `Field(default=..., description=...)` without importing the class that it stands in."""

    def on_attribute(self, *, attr: Attribute, **_context: Any) -> None:
        """Describe one attribute by its field, where it is one; called by Griffe.

        Args:
            attr: The attribute, changed in place.
            **_context: What else Griffe tells.
        """
        field = attr.value
        if not isinstance(field, ExprCall) or str(field.function) != "Field":
            return
        said = {part.name: part.value for part in field.arguments if isinstance(part, ExprKeyword)}
        attr.value = said.get("default")
        if attr.docstring is None and "description" in said:
            attr.docstring = Docstring(ast.literal_eval(str(said["description"])), parent=attr)
