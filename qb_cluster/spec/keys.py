"""What the keys of every part of a spec have in common."""

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

LONGEST_LABEL: Final = 80  # characters: tables are read by people
NAME: Final = "^[A-Za-z0-9][A-Za-z0-9._-]*$"

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class _Listed:
    """Lets one entry stand for a list of one, in the validation and in the JSON Schema."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


ZeroOrMore = Annotated[list[T], _Listed()]
OneOrMore = Annotated[list[T], Field(min_length=1), _Listed()]


class Keys(BaseModel):
    """A mapping in the YAML. No unknown keys, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        defer_build=True,  # reports import this package and validate nothing
        model_title_generator=lambda keys: keys.__name__.removesuffix("Keys"),
    )


def form(value: Any) -> str:
    """Tell a lone name from a mapping: the tag of a union of both."""
    return "<mapping>" if isinstance(value, dict | Keys) else "<lone>"
